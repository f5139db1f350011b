"""Prompts and completions as callers have them, into the messages of the contract; what cannot be sent is refused."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from rm_api.v1 import scoring_pb2

from ppo_client.client.errors import InvalidRequest, InvalidTokenIds, MalformedRequest, UnsupportedContent
from ppo_client.client.scores import Content

_WireContent: TypeAlias = scoring_pb2.Content


class Item(NamedTuple):
    """One completion with its prompt, ready to be sent. ``place``: in the call.

    Items with equal prompts share one message object; it travels once for all that are neighbours in a request.
    """

    place: int
    prompt: _WireContent
    completion: _WireContent

    @property
    def num_bytes(self) -> int:
        """On the wire, without the prompt, roughly."""
        return self.completion.ByteSize() + 8


def is_empty(completion: Content) -> bool:
    """No text, no ids, no messages or those of no words. What is no content at all is not empty: a call refuses it.

    Nor is a message that says something in another field, a call of a tool say.
    """
    if isinstance(completion, str):
        return not completion
    return isinstance(completion, Sequence) and all(
        isinstance(part, Mapping)
        and part.get("content") == ""
        and not any(value for name, value in part.items() if name not in ("role", "content"))
        for part in completion
    )


def to_items(prompts: Sequence[Content], completions: Sequence[Content], *, are_rendered: bool = False) -> list[Item]:
    """The items, those with equal prompts beside each other. Raises InvalidRequest, naming the place.

    ``are_rendered``: each pair is one text, which travels whole.
    """
    prompts, completions = _as_list("prompts", prompts), _as_list("completions", completions)
    if len(prompts) != len(completions):
        raise InvalidRequest(
            f"{len(prompts)} prompts and {len(completions)} completions: the lists must be of equal length, each "
            "prompt repeated for each of its completions (it still travels once)"
        )
    known: dict[bytes, tuple[_WireContent, list[Item]]] = {}
    previous: tuple[object, tuple[_WireContent, list[Item]]] | None = None
    for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        if previous is None or prompt is not previous[0]:
            message = _to_message(prompt, f"prompt {index}")
            previous = prompt, known.setdefault(message.SerializeToString(deterministic=True), (message, []))
        shared, items = previous[1]
        message = _to_message(completion, f"completion {index}")
        _check_one_kind(shared, message, f"item {index}: ")
        if are_rendered:
            message = _whole(shared, message, f"item {index}: ")
        if message.WhichOneof("content") is None and shared.WhichOneof("content") == "token_ids":
            message.token_ids.SetInParent()  # no tokens, which is not the same as no content
        items.append(Item(index, shared, message))
    return [item for _, items in known.values() for item in items]


def check_pair(prompt: Content, completion: Content, *, is_rendered: bool = False) -> None:
    """Raises InvalidRequest where they cannot be sent."""
    messages = _to_message(prompt, "the prompt"), _to_message(completion, "the completion")
    _check_one_kind(*messages, "")
    if is_rendered:
        _whole(*messages, "")


def _as_list(name: str, values: Any) -> Sequence[Content]:
    """A list as it is, or the texts of an array or a Series."""
    if isinstance(values, Sequence) and not isinstance(values, (str, bytes)):
        return values
    hint = ""
    if hasattr(values, "tolist"):
        rows = values.tolist()
        if isinstance(rows, list) and (not rows or any(isinstance(row, str) for row in rows)):
            return rows
        hint = ": pass the rows without their padding, [row[:length] for row, length in zip(rows, lengths)]"
    raise InvalidRequest(f"{name} must be a list, got {type(values).__name__}{hint}")


def _check_one_kind(prompt: _WireContent, completion: _WireContent, where: str) -> None:
    """Text goes with messages, as one turn of the user or of the assistant; token ids go with token ids alone."""
    kinds = prompt.WhichOneof("content"), completion.WhichOneof("content")
    if kinds[0] != kinds[1] and None not in kinds and "token_ids" in kinds:
        raise UnsupportedContent(
            f"{where}the prompt is {kinds[0]} and the completion {kinds[1]}; token ids are for both or for neither"
        )


def _whole(prompt: _WireContent, completion: _WireContent, where: str) -> _WireContent:
    kinds = {prompt.WhichOneof("content"), completion.WhichOneof("content")} - {None, "text"}
    if kinds:
        raise UnsupportedContent(f"{where}rendered is for text, and {', '.join(sorted(map(str, kinds)))} came")
    return scoring_pb2.Content(text=prompt.text + completion.text)


def _to_message(content: Any, where: str) -> _WireContent:
    if isinstance(content, str):
        try:
            return scoring_pb2.Content(text=content)
        except ValueError as error:
            raise MalformedRequest(f"{where} is no valid Unicode text: {error}") from None
    if hasattr(content, "tolist"):  # a row of an array or a tensor
        content = content.tolist()
    if isinstance(content, (bytes, Mapping)) or not isinstance(content, Sequence):
        raise UnsupportedContent(
            f"{where} is {_type_of(content)}; expected text (str), a list of chat messages, or a list of token ids"
        )
    if not content:
        return scoring_pb2.Content()
    if isinstance(content[0], Mapping):
        return _messages(content, where)
    return _token_ids(content, where)


def _token_ids(ids: Sequence[Any], where: str) -> _WireContent:
    types = set(map(type, ids))
    if bool in types:
        raise InvalidTokenIds(f"{where} has booleans among its token ids; was a mask passed?")
    try:
        # `index` takes the integers of every library, and neither floats nor nested lists.
        integers = ids if types == {int} else map(operator.index, ids)
        return scoring_pb2.Content(token_ids=scoring_pb2.TokenIds(ids=integers))
    except (TypeError, ValueError) as error:
        raise InvalidTokenIds(
            f"{where} is no list of token ids, integers from 0 to 4294967295: {error} (neither is it text or a list of "
            "chat messages)"
        ) from None


def _messages(messages: Sequence[Any], where: str) -> _WireContent:
    wire = scoring_pb2.Content()
    for number, message in enumerate(messages):
        here = f"{where}, message {number}"
        if not isinstance(message, Mapping):
            raise UnsupportedContent(f"{here} is {_type_of(message)}; expected a mapping with role and content")
        # Data sets fill the fields that a row does not have with None.
        given = {key: value for key, value in message.items() if value is not None}
        if set(given) != {"role", "content"}:
            raise UnsupportedContent(
                f"{here} has the fields {sorted(map(str, given))}; role and content are what can be sent. Leaving the "
                "others out would change what is scored, so remove them, or render the conversation to text"
            )
        if not isinstance(given["role"], str) or not isinstance(given["content"], str):
            raise UnsupportedContent(
                f"{here} has a role of type {_type_of(given['role'])} and a content of type "
                f"{_type_of(given['content'])}; both must be text"
            )
        try:
            wire.messages.messages.add(role=given["role"], content=given["content"])
        except ValueError as error:
            raise MalformedRequest(f"{here} is no valid Unicode text: {error}") from None
    return wire


def _type_of(value: object) -> str:
    return "None" if value is None else type(value).__name__
