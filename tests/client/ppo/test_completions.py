"""A completion is the text that follows its prompt, whatever the tokenizer's decoder does to a text's beginning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import EOS_ID, PAD_ID, make_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ppo_client.ppo.models.sequences import Prompts, Sequences
from ppo_client.ppo.policy import Samples
from ppo_client.ppo.scores.completions import response_texts

WORDS = ("<unk>", "<s>", "</s>", "▁Once", "▁upon", "▁a", "▁time", "▁there", "s", ".")


def make_stripping_tokenizer() -> Any:
    """Its decoder is that of Llama 2 and Mistral: a text's first space is taken for the tokenizer's own."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )


def make_samples(prompts: list[list[int]], responses: list[list[int]], pad_id: int, has_eos: bool) -> Samples:
    width = max(map(len, responses))
    ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in responses])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in responses])
    zeros = torch.zeros(mask.shape)
    sequences = Sequences(Prompts.collate(prompts, pad_id), ids, mask)
    return Samples(sequences, torch.tensor([has_eos] * len(prompts)), zeros, zeros, None)


def test_a_decoder_that_strips_does_not_glue_the_completion_to_its_prompt() -> None:
    tokenizer = make_stripping_tokenizer()
    once, upon, a, time, there, s, eos = (
        WORDS.index(word) for word in ("▁Once", "▁upon", "▁a", "▁time", "▁there", "s", "</s>")
    )
    samples = make_samples(
        [[1, once, upon, a], [once, upon, a, time]], [[time, there, eos], [s, eos]], pad_id=0, has_eos=True
    )
    assert response_texts(samples, tokenizer, continues_prompt=True) == [" time there", "s"]


@pytest.mark.parametrize("has_eos", [True, False])
def test_a_character_that_prompt_and_response_share_stays_with_the_response_alone(has_eos: bool) -> None:
    tokenizer = make_tokenizer()
    first, second = tokenizer("ö")["input_ids"]
    body = [second, *tokenizer("x")["input_ids"]]
    samples = make_samples([[first]], [[*body, EOS_ID] if has_eos else body], PAD_ID, has_eos)
    assert response_texts(samples, tokenizer, continues_prompt=True) == [tokenizer.decode(body)]


def test_a_text_of_its_own_is_decoded_alone() -> None:
    tokenizer = make_tokenizer()
    body = tokenizer(" the end")["input_ids"]
    samples = make_samples([tokenizer("in")["input_ids"]], [[*body, EOS_ID]], PAD_ID, True)
    assert response_texts(samples, tokenizer, continues_prompt=False) == [" the end"]
