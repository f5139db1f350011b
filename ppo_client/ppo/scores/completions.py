"""A sampled response as the reward model and people see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ppo_client.client.scores import Content
from ppo_client.ppo.policy import Samples
from ppo_client.ppo.prompts import Prompt


def response_ids(samples: Samples) -> list[list[int]]:
    """The sampled ids of each response, EOS included where it was drawn."""
    lengths = samples.sequences.response_mask.sum(1).tolist()
    rows = samples.sequences.response_ids.tolist()
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]


def response_texts(samples: Samples, tokenizer: Any | None, *, continues_prompt: bool) -> list[str]:
    """Decoded, without EOS and special tokens; the ids as words where there is no tokenizer.

    `continues_prompt`: the policy's, whether a response goes on with the prompt's text or is a text of its own.
    """
    has_eos = samples.has_eos.tolist()
    bodies = [ids[:-1] if ended else ids for ids, ended in zip(response_ids(samples), has_eos, strict=True)]
    if tokenizer is None:
        return [" ".join(map(str, ids)) for ids in bodies]

    def decoded(rows: list[list[int]]) -> list[str]:
        texts: list[str] = tokenizer.batch_decode(rows, skip_special_tokens=True)
        return texts

    if not continues_prompt:
        return decoded(bodies)
    prompts = samples.sequences.prompts
    prompt_ids = [ids[mask].tolist() for ids, mask in zip(prompts.ids, prompts.mask, strict=True)]
    # Some decoders (Llama 2's, Mistral's) strip the space before a text's first word: a response is decoded in its
    # place after the prompt. Where the prompt ends within a character, it is no prefix, and the response stands alone.
    wholes = decoded([prompt + body for prompt, body in zip(prompt_ids, bodies, strict=True)])
    return [
        whole[len(prompt) :] if whole.startswith(prompt) else alone
        for whole, prompt, alone in zip(wholes, decoded(prompt_ids), decoded(bodies), strict=True)
    ]


def completion_contents(prompts: Sequence[Prompt], ids: list[list[int]], texts: list[str]) -> list[Content]:
    """What is sent: of the same kind as the prompt, as the service asks for."""
    return [_content(prompt.content, row, text) for prompt, row, text in zip(prompts, ids, texts, strict=True)]


def _content(prompt: Content, ids: list[int], text: str) -> Content:
    if isinstance(prompt, str):
        return text
    if isinstance(prompt[0], int):
        return ids
    return [{"role": "assistant", "content": text}]
