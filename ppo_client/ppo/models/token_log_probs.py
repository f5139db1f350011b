"""Log-probabilities of given tokens, and entropies, with no second tensor as large as the logits but their gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ppo_client.ppo.models.distribution import SamplingRule, entropy

# Logits worked on at a time: what a CPU's cache holds; elsewhere, enough to be busy with.
_CHUNK_ON_CPU, _CHUNK = 2**18, 2**24


class TokenLogProbs(NamedTuple):
    """Both (B, R), float32."""

    log_probs: Tensor
    entropies: Tensor | None
    """Nats; None where they were not asked for"""


def token_log_probs(raw: Tensor, ids: Tensor, rule: SamplingRule, *, with_entropy: bool = False) -> TokenLogProbs:
    """log π of each token under the policy that `rule` makes of a model's logits: raw (B, R, V), ids int64 (B, R).

    The same as `rule.logits(raw).log_softmax(-1)` gathered at `ids`, whose autograd keeps four such tensors: with a
    vocabulary of 150,000 they are most of an update's memory, and reading and writing them much of its time.
    """
    log_probs, entropies = _TokenLogProbs.apply(raw, ids, rule, with_entropy)
    return TokenLogProbs(log_probs, entropies if with_entropy else None)


class _TokenLogProbs(torch.autograd.Function):
    """Column by column, forth and back; of the distribution only its normaliser is kept."""

    @staticmethod
    def forward(ctx: Any, raw: Tensor, ids: Tensor, rule: SamplingRule, with_entropy: bool) -> tuple[Tensor, Tensor]:
        log_probs, normalizers, entropies = (torch.empty(ids.shape, device=raw.device) for _ in range(3))
        for columns in _chunks(raw):
            logits = rule.logits(raw[:, columns], columns.start)
            distribution = logits.log_softmax(-1)
            chosen = ids[:, columns].unsqueeze(-1)
            log_probs[:, columns] = distribution.gather(-1, chosen).squeeze(-1)
            normalizers[:, columns] = logits.gather(-1, chosen).squeeze(-1) - log_probs[:, columns]
            if with_entropy:
                entropies[:, columns] = entropy(distribution)
        ctx.save_for_backward(raw, ids, normalizers, entropies)
        ctx.rule, ctx.with_entropy = rule, with_entropy
        if not with_entropy:
            ctx.mark_non_differentiable(entropies)
        return log_probs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_log_probs: Tensor, of_entropies: Tensor) -> tuple[Tensor, None, None, None]:
        """∂ log p_i / ∂ z_j = [i = j] − p_j, and ∂ H / ∂ z_j = −p_j (log p_j + H); z = raw / temperature."""
        raw, ids, normalizers, entropies = ctx.saved_tensors
        rule: SamplingRule = ctx.rule
        gradient = torch.empty_like(raw)
        for columns in _chunks(raw):
            weight = of_log_probs[:, columns, None] / rule.temperature
            distribution = rule.logits(raw[:, columns], columns.start) - normalizers[:, columns, None]
            probabilities = distribution.exp()
            part = probabilities * -weight
            if ctx.with_entropy:
                # A masked EOS has p = 0 and a log p near fp32's lowest: p times it comes first, lest it become ∞.
                surprise = distribution.add_(entropies[:, columns, None]).mul_(probabilities)
                part -= surprise.mul_(of_entropies[:, columns, None] / rule.temperature)
            gradient[:, columns] = part.scatter_add_(-1, ids[:, columns].unsqueeze(-1), weight)
        return gradient, None, None, None


def _chunks(raw: Tensor) -> list[slice]:
    """Of the columns of (B, R, V)."""
    num_rows, num_columns, vocab_size = raw.shape
    at_a_time = _CHUNK_ON_CPU if raw.device.type == "cpu" else _CHUNK
    width = max(1, at_a_time // (num_rows * vocab_size))
    return [slice(first, min(first + width, num_columns)) for first in range(0, num_columns, width)]
