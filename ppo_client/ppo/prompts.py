"""Prompts from a data file: what the policy reads, and what the reward model is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppo_client.client.content import check_pair
from ppo_client.client.errors import InvalidRequest
from ppo_client.client.scores import Content
from ppo_client.ppo.config import DataConfig, RewardConfig
from ppo_client.ppo.errors import DataError
from ppo_client.ppo.rows import check_unicode, read_rows


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt: ids for the policy, content for the reward model, text for people."""

    token_ids: list[int]
    content: Content
    text: str


def load_prompts(
    data: DataConfig,
    reward: RewardConfig,
    tokenizer: Any | None,
    *,
    keeps_eos: bool = False,
    are_scored: bool = True,
) -> list[Prompt]:
    """All prompts of the file, in its order. Raises DataError where one cannot be used.

    `keeps_eos`: whether a text keeps the EOS that its tokenizer ends it with, as encoders read it. `are_scored`:
    whether a reward model is to be sent them.
    """
    path = Path(data.prompts)
    prompts = []
    for place, row in read_rows(path, data.where, [data.field]):
        if data.field not in row:
            raise DataError(f"{place}: no field {data.field!r}; it has {', '.join(row)}")
        prompt = make_prompt(row[data.field], reward, tokenizer, place, keeps_eos=keeps_eos, is_scored=are_scored)
        if len(prompt.token_ids) > data.max_prompt_tokens:
            if data.overlong == "drop":
                continue
            if data.overlong == "refuse":
                raise DataError(
                    f"{place}: {len(prompt.token_ids)} tokens, max_prompt_tokens is "
                    f'{data.max_prompt_tokens}: raise it, or set overlong to "drop" or "keep_end"'
                )
            kept = prompt.token_ids[-data.max_prompt_tokens :]
            # Where ids are sent, the reward model is told what the policy saw; text goes out whole.
            content = kept if reward.input == "token_ids" else prompt.content
            prompt = Prompt(kept, content, prompt.text)
        prompts.append(prompt)
    if not prompts:
        fitting = f" that fit into {data.max_prompt_tokens} tokens" if data.overlong == "drop" else ""
        raise DataError(f"{path}: no prompts{fitting}")
    return prompts


def make_prompt(
    value: Any,
    reward: RewardConfig,
    tokenizer: Any | None,
    place: str,
    *,
    keeps_eos: bool = False,
    is_scored: bool = True,
) -> Prompt:
    """A prompt of text, chat messages or token ids. Raises DataError, which names `place`."""
    ids: list[int]
    if _is_list_of(value, int) and value:
        if min(value) < 0:
            raise DataError(f"{place}: token ids cannot be negative")
        if reward.input == "text":
            if tokenizer is None:
                raise DataError(
                    f'{place}: token ids and no tokenizer: set policy.tokenizer, or reward.input = "token_ids"'
                )
            text = tokenizer.decode(value, skip_special_tokens=True)
            return Prompt(value, reward.prompt_template.replace("{prompt}", text), text)
        return Prompt(value, value, " ".join(map(str, value)))
    if tokenizer is None:
        raise DataError(f"{place}: a text prompt needs a tokenizer: set policy.tokenizer")
    content: Content
    if isinstance(value, str) and value:
        check_unicode(value, place)
        ids = tokenizer(value)["input_ids"]
        ids = ids if keeps_eos else _without_eos(ids, tokenizer)
        text, content = value, reward.prompt_template.replace("{prompt}", value)
    elif _is_list_of(value, dict) and value and all({"role", "content"} <= set(message) for message in value):
        if reward.prompt_template != "{prompt}":
            raise DataError(f"{place}: chat messages, and reward.prompt_template is for text: remove it")
        if tokenizer.chat_template is None:
            raise DataError(f"{place}: chat messages, and the policy's tokenizer has no chat template")
        text, content = "\n".join(f"{message['role']}: {message['content']}" for message in value), value
        check_unicode(text, place)
        if is_scored and reward.input == "text":
            _check_can_be_sent(value, place)
        ids = _rendered(value, tokenizer, place)
    else:
        raise DataError(f"{place}: a prompt is text, chat messages or token ids, and not empty; this is {value!r:.80}")
    if not ids:
        raise DataError(f"{place}: the tokenizer makes no tokens of {text!r:.80}")
    return Prompt(ids, ids if reward.input == "token_ids" else content, text)


def _check_can_be_sent(messages: Content, place: str) -> None:
    """The client would refuse them, too, and by then a run has been set up and has written its first responses."""
    try:
        check_pair(messages, "")
    except InvalidRequest as error:
        raise DataError(f"{place}: {error}") from error


def _rendered(messages: Any, tokenizer: Any, place: str) -> list[int]:
    """By the policy's chat template, up to where the answer begins. Some know no system, or want roles in turn."""
    from jinja2 import TemplateError  # for conversations alone

    try:
        rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    except (TemplateError, TypeError) as error:
        raise DataError(f"{place}: the policy's chat template does not take these messages: {error}") from error
    ids: list[int] = rendered["input_ids"]
    return ids


def _without_eos(ids: list[int], tokenizer: Any) -> list[int]:
    """Some tokenizers end every text with EOS; a prompt is to be gone on with."""
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(type(entry) is kind for entry in value)
