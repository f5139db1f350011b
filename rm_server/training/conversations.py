"""Pairs of whole conversations: what of them is the prompt, and what the completions."""

from __future__ import annotations

import itertools
import re

from rm_server.backends.items import ChatMessage, Content, is_messages
from rm_server.training.data_files import BadData

_ROLES_BEFORE_ANSWERS = ("system", "developer", "user")

_ASSISTANT_TURN = "\n\nAssistant:"
"""Before each answer in a dialogue that is one text, as in Anthropic's hh-rlhf."""


def split_conversations(chosen: Content, rejected: Content, place: str) -> tuple[Content, Content, Content]:
    """Both begin with the same messages: those are the prompt, the rest are the completions."""
    length = 0
    while length < min(len(chosen), len(rejected)) and chosen[length] == rejected[length]:
        length += 1
    if chosen != rejected and not 0 < length < min(len(chosen), len(rejected)):
        raise BadData(
            f"{place} has no `prompt`, and `chosen` and `rejected` are not two conversations that begin alike "
            "and then differ."
        )
    return chosen[:length], chosen[length:], rejected[length:]


def split_dialogues(chosen: str, rejected: str, place: str) -> tuple[str, str, str]:
    """The prompt ends with the last turn's mark that both have; joined again, all is as it was."""
    ends = (turn.end() for turn in re.finditer(_ASSISTANT_TURN, chosen))
    length = max((end for end in ends if rejected.startswith(chosen[:end])), default=0)
    if chosen != rejected and not 0 < length < min(len(chosen), len(rejected)):
        raise BadData(
            f"{place} has no `prompt`, and `chosen` and `rejected` are not two dialogues that begin alike up to an "
            f"answer after {_ASSISTANT_TURN!r}. Put what both begin with into `prompt`, and only the answers into "
            "`chosen` and `rejected`."
        )
    return chosen[:length], chosen[length:], rejected[length:]


def without_prompt(prompt: Content, chosen: Content, rejected: Content, place: str) -> tuple[Content, Content, Content]:
    """Takes the prompt off completions that are whole conversations, which begin with it, or with turns up to it."""
    if not (is_messages(chosen) and is_messages(rejected)):
        return prompt, chosen, rejected
    length = _num_repeated(prompt, chosen, rejected, place)
    if length == 0:
        return prompt, chosen, rejected
    if length >= min(len(chosen), len(rejected)):
        raise BadData(f"{place}: a completion has nothing after the prompt.")
    return chosen[:length], chosen[length:], rejected[length:]


def _num_repeated(
    prompt: Content, chosen: tuple[ChatMessage, ...], rejected: tuple[ChatMessage, ...], place: str
) -> int:
    """How many turns of both are the prompt and what comes before it; 0: both are answers alone."""
    if is_messages(prompt) and chosen[: len(prompt)] == rejected[: len(prompt)] == prompt:
        return len(prompt)
    first = next(filter(_is_before_answers, (chosen[0], rejected[0])), None)
    if first is None or not _awaits_answer(prompt):
        return 0
    alike = itertools.takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False))
    turns = [
        number for number, (turn, _) in enumerate(alike, start=1) if turn.content == prompt and _is_before_answers(turn)
    ]
    if not turns:
        raise BadData(
            f"{place}: `chosen` or `rejected` begins with a {first.role}'s turn, so they are whole conversations, "
            "and `prompt` is not what both begin with. Leave `prompt` out, or put only the answers into `chosen` and "
            "`rejected`."
        )
    return turns[-1]


def _awaits_answer(prompt: Content) -> bool:
    """After such a prompt comes an answer: text, or messages that a user has the last word of."""
    return prompt[-1].role == "user" if is_messages(prompt) else isinstance(prompt, str)


def _is_before_answers(message: ChatMessage) -> bool:
    return message.role in _ROLES_BEFORE_ANSWERS
