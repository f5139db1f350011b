"""How a sequence classifier comes from hidden states to logits: the backbone apart from the model's own head."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from rm_server.backends.checkpoint import Model

PooledPosition: TypeAlias = Literal["first", "last", "mean"]


def scores_last_token(model: Model) -> bool:
    """Whether the head reads the last token, as transformers' decoders do (they all call that head ``score``)."""
    return hasattr(model, "score")


def pooled_position(model: Model) -> PooledPosition:
    """Which hidden states of an item its head reads. The self-check at load finds out where this is wrong."""
    if scores_last_token(model):
        return "last"
    return "mean" if getattr(model.config, "classifier_pooling", "cls") == "mean" else "first"


class SplitModel:
    """A sequence classifier taken apart, so that its backbone can run on a flat batch.

    The head of an encoder is the model's own forward with a stand-in for the backbone that hands on the pooled states:
    whatever the family does after its backbone (pooler, dense layer, activation) is done by its own code.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.position: PooledPosition = pooled_position(model)
        self.backbone: torch.nn.Module = model.base_model
        self._pooler: torch.nn.Module | None = getattr(self.backbone, "pooler", None)
        self._name: str = model.base_model_prefix
        if self.position != "last":
            # The backbone would pool position 0 of the whole flat batch, and in its own precision.
            if self._pooler is not None:
                self.backbone.pooler = None
            setattr(model, self._name, _PooledStates(self._pooler))

    def head_logits(self, pooled: torch.Tensor) -> torch.Tensor:
        """Logits, shape (num_items, num_labels), from pooled states of shape (num_items, hidden_size)."""
        if self.position == "last":
            logits: torch.Tensor = self.model.score(pooled)
        else:
            logits = self.model(inputs_embeds=pooled.unsqueeze(1)).logits
        return logits

    def rejoin(self) -> Model:
        """Puts the model together again and returns it."""
        if self.position != "last":
            setattr(self.model, self._name, self.backbone)
            if self._pooler is not None:
                self.backbone.pooler = self._pooler
        return self.model


class _PooledStates(torch.nn.Module):
    """Stands where the backbone was and answers with states that are pooled already, shape (num_items, 1, hidden)."""

    def __init__(self, pooler: torch.nn.Module | None) -> None:
        super().__init__()
        self.pooler = pooler

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(
            last_hidden_state=inputs_embeds,
            pooler_output=None if self.pooler is None else self.pooler(inputs_embeds),
        )
