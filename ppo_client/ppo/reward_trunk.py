"""A reward model as the start of a critic: what it knows of good texts, and the head that says it in a number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from ppo_client.ppo.errors import ConfigError


def load_reward_model(place: str, dtype: str) -> tuple[Any, nn.Linear]:
    """The decoder-only sequence classifier in `place`, and its score head: linear, one label.

    Raises ConfigError where there is no such thing: the head is to be read at every token of a response.
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
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or config.is_encoder_decoder:
        raise ConfigError(
            f"critic.init: {place} is a {type(model).__name__}: a critic can start from a decoder-only classifier, "
            "whose score is linear in the hidden state of the last token"
        )
    if head.out_features != 1:
        raise ConfigError(f"critic.init: {place} has {head.out_features} labels; a reward model with one is expected")
    return model, head


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
