"""The JSON that OpenRLHF's and vLLM's clients send and expect, to and from the server's own types."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from rm_server.api.whole_answer import all_values
from rm_server.backends.items import ChatMessage, Content, RenderedText
from rm_server.errors import InvalidRequest, MalformedRequest
from rm_server.scoring.scorer import ScoreAnswer

Group = tuple[Content, Sequence[Content]]
CheckSize = Callable[[int], None]
"""Refuses too many items before they are looked at; see `Scorer.check_size`."""

NO_PROMPT = ""
"""These clients send prompt and completion as one text: it stands alone as the completion."""

_ACTIVATION_FIELDS = ("use_activation", "activation", "softmax")
"""What vLLM has called it: the first is today's name."""

_MOST_SHOWN = 80
"""Characters of what came, in an error."""

_TRUTHS = {"true": True, "1": True, "false": False, "0": False}

_REFUSED_FIELDS = ("truncate_prompt_tokens", "truncation_side", "chat_template")


def parse_json(raw: bytes) -> dict[str, Any]:
    """The body of a request. Raises MalformedRequest."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise MalformedRequest(f"The body is no JSON in UTF-8: {error}.") from error
    if not isinstance(body, dict):
        raise MalformedRequest(f"The body is a JSON {type(body).__name__}; an object was expected.")
    return body


def openrlhf_groups(body: dict[str, Any], check_size: CheckSize) -> list[Group]:
    """One group a query: the whole text, prompt and response. An empty list is legal: OpenRLHF sends it to servers
    that get no share of a batch. ``prompts`` say where the responses begin, for versions to which that matters;
    ``labels`` are sent too, and are not looked at.
    """
    queries, prompts = body.get("query"), body.get("prompts")
    if not isinstance(queries, list):
        raise InvalidRequest(f"`query` is {_shown(queries)}; a list of texts was expected.")
    check_size(len(queries))
    if not isinstance(prompts, list) or len(prompts) != len(queries):
        prompts = [NO_PROMPT] * len(queries)
    return [
        (NO_PROMPT, (RenderedText(_text(query, f"query[{index}]"), prompt if isinstance(prompt, str) else NO_PROMPT),))
        for index, (query, prompt) in enumerate(zip(queries, prompts, strict=True))
    ]


def openrlhf_response(answer: ScoreAnswer) -> dict[str, Any]:
    """``rewards`` with one number a query; ``scores`` the same, which OpenRLHF may filter by.

    ``extra_logs``, all of the answer that OpenRLHF logs beside the rewards, says which version gave them and which
    texts were cut, and has a composite's components: one number a query each.
    """
    rewards = all_values(answer, "query")
    logs: dict[str, list[float]] = {
        "rm_version": [float(answer.version)] * len(rewards),
        "rm_truncated": [float(item.truncated) for item in answer.items],
    }
    for item in answer.items:
        for part in item.components:
            logs.setdefault(f"component/{part.name}", []).append(part.value)
    return {"rewards": rewards, "scores": rewards, "extra_logs": logs, **_source(answer)}


def vllm_groups(body: dict[str, Any], check_size: CheckSize) -> list[Group]:
    """One group an input (a text, ids, or a list of either), or one for ``messages``.

    Scores are raw whatever ``use_activation`` defaults to elsewhere: where it is true the request is refused, as are
    fields that would change the score and that this server takes from the version's manifest.
    """
    for field in _ACTIVATION_FIELDS:
        if body.get(field) is True:
            raise InvalidRequest(
                f"`{field}` is true, and this server gives raw scores only. Send false; a version whose manifest "
                "says `sigmoid` has it applied already."
            )
    for field in _REFUSED_FIELDS:
        if body.get(field) is not None:
            raise InvalidRequest(f"`{field}` is not taken from the request; the version's manifest decides it.")
    if (messages := body.get("messages")) is not None:
        return [(NO_PROMPT, (_messages(messages),))]
    value = body.get("input")
    if isinstance(value, str) or _is_ids(value):
        value = [value]
    if not isinstance(value, list):
        raise InvalidRequest(f"`input` is {_shown(value)}; a text, token ids, or a list of either was expected.")
    check_size(len(value))
    return [(NO_PROMPT, (_input(part, f"input[{index}]"),)) for index, part in enumerate(value)]


def vllm_response(answer: ScoreAnswer, request_id: str) -> dict[str, Any]:
    """vLLM's shape; ``probs`` holds the one score."""
    num_tokens = sum(item.num_tokens for item in answer.items)
    return {
        "id": f"classify-{request_id}",
        "object": "list",
        "created": int(time.time()),
        "data": [
            {"index": index, "label": None, "probs": [value], "num_classes": 1}
            for index, value in enumerate(all_values(answer, "input"))
        ],
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens, "completion_tokens": 0},
        **_source(answer),
    }


def wants_calibrated(query: Mapping[str, str]) -> bool:
    """Whether calibrated scores are asked for, by the URL's query. Raises InvalidRequest for what is not known."""
    if unknown := sorted(set(query) - {"run", "calibrated"}):
        raise InvalidRequest(f"The URL's query has {', '.join(unknown)}; `run` and `calibrated` are known.")
    if len(query) > len(set(query)):
        raise InvalidRequest("The URL's query says something twice; each of `run` and `calibrated` may come once.")
    calibrated = query.get("calibrated", "false").lower()
    if calibrated not in _TRUTHS:
        raise InvalidRequest(f"calibrated={_shown(calibrated)} in the URL; true or false was expected.")
    return _TRUTHS[calibrated]


def _source(answer: ScoreAnswer) -> dict[str, Any]:
    """What every answer says of itself; the clients ignore keys that they do not know."""
    return {
        "model": answer.model,
        "version": answer.version,
        "digest": answer.digest,
        "transform": answer.transform,
        "calibration": None if answer.calibration is None else answer.calibration.digest,
        "truncated": [item.truncated for item in answer.items],
    }


def _input(value: Any, where: str) -> Content:
    if _is_ids(value):
        return tuple(value)
    return RenderedText(_text(value, where))


def _messages(value: Any) -> tuple[ChatMessage, ...]:
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise InvalidRequest(f"`messages` is {_shown(value)}; a list of objects with role and content was expected.")
    return tuple(
        ChatMessage(
            _text(message.get("role"), f"messages[{index}].role"),
            _text(message.get("content"), f"messages[{index}].content"),
        )
        for index, message in enumerate(value)
    )


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{where} is {_shown(value)}; a text was expected.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise MalformedRequest(f"{where} has half of a surrogate pair, which is no text.") from None
    return value


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _shown(value: Any) -> str:
    if value is None:
        return "missing"
    # Piece by piece: it may be huge, or as deep as Python's stack.
    text = "".join(islice(json.JSONEncoder().iterencode(value), _MOST_SHOWN + 1))
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "…"
