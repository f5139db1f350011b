"""A reward model as the start of a critic: what it knows of good texts, and the head that says it in a number."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from ppo_client.ppo.errors import ConfigError


@dataclass(frozen=True, slots=True)
class RewardModel:
    """A sequence classifier with one label, and the head that can be read at every token of a response."""

    model: Any
    score: nn.Linear
    before_score: nn.Sequential
    """Between the hidden states and `score`: nothing in a decoder-only classifier"""


def load_reward_model(place: str, dtype: str, *, is_encoder_decoder: bool) -> RewardModel:
    """The sequence classifier in `place`, which is to be of the policy's architecture.

    Of an encoder-decoder (T5, BART) the decoder's last hidden states go through a layer of their own to the score. It
    has learnt to read the whole text in both parts, and the critic the prompt in one and the response in the other.

    Raises ConfigError where there is no such thing.
    """
    if not (Path(place) / "config.json").is_file():
        raise ConfigError(
            f"critic.init: {place} is not a model directory: it has no config.json (merge adapters first)"
        )
    try:
        config = AutoConfig.from_pretrained(place)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            place, config=config, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"critic.init: {place} cannot be loaded as a sequence classifier: {error}") from error
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(f"critic.init: {place} lacks {', '.join(missing)}: it is no trained reward model")
    score, before = getattr(model, "score", None), nn.Sequential()
    if config.is_encoder_decoder and (head := getattr(model, "classification_head", None)) is not None:
        score, before = head.out_proj, nn.Sequential(head.dense, nn.Tanh())
    if not isinstance(score, nn.Linear) or config.is_encoder_decoder != is_encoder_decoder:
        wanted = "an encoder-decoder" if is_encoder_decoder else "a decoder-only"
        raise ConfigError(
            f"critic.init: {place} is a {type(model).__name__}: this policy's critic can start from {wanted} "
            "classifier, whose score is read off the hidden state of the last token"
        )
    if score.out_features != 1:
        raise ConfigError(f"critic.init: {place} has {score.out_features} labels; a reward model with one is expected")
    return RewardModel(model, score, before)


def check_same_tokenizer(place: str, tokenizer: Any | None, other: Any | None) -> None:
    """Raises ConfigError where the reward model in `place`, with the tokenizer `other`, reads other ids."""
    if (tokenizer is None) != (other is None):
        has, lacks = ("the reward model", "the policy") if tokenizer is None else ("the policy", "the reward model")
        raise ConfigError(f"critic.init: {has} has a tokenizer and {lacks} has none, so their ids cannot be compared")
    if tokenizer is not None and other is not None and tokenizer.get_vocab() != other.get_vocab():
        raise ConfigError(
            f"critic.init: the tokenizer of {place} is not the policy's, and the critic reads the policy's tokens: "
            "start from a reward model of the policy's family, or from the policy (leave critic.init empty)"
        )
