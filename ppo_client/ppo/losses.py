"""PPO's clipped losses, as sums, so that micro-batches add up to exactly the minibatch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PolicyLoss(NamedTuple):
    """Sums over the tokens that count; divide by their number in the whole minibatch."""

    loss: Tensor
    num_clipped: Tensor
    """Tokens whose gradient a clip takes away"""
    approx_kl: Tensor
    """Of the sampling policy from the present one, estimator k3, in nats"""
    ratio: Tensor
    max_log_ratio: Tensor
    """Not a sum: the largest |log π − log π_old|"""


class ValueLoss(NamedTuple):
    """Sums over the tokens that count."""

    loss: Tensor
    num_clipped: Tensor


def policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    clip_range: float,
    weights: Tensor | None = None,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """max(−A·r, −A·clip(r, 1 ± ε)) with r = π / π_old; all (B, R). Source: Schulman et al. 2017, equation 7.

    `dual_clip`: c, with which it is at most −c·A where A < 0. Source: Ye et al. 2020 ("Mastering Complex Control in
    MOBA Games with Deep Reinforcement Learning"), equation 5.
    `weights`: of tokens that another policy than π_old sampled, see `staleness.importance_weights`.
    """
    # Where the mask is False both hold anything, an infinity perhaps; ∞ · 0 would be NaN.
    log_ratio = torch.where(response_mask, log_probs - old_log_probs, 0.0)
    ratio = log_ratio.exp()
    if weights is not None:
        advantages = weights * advantages
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    losses, is_clipped = torch.max(unclipped, clipped), clipped > unclipped
    if dual_clip is not None:
        is_bounded = (advantages < 0) & (unclipped > -dual_clip * advantages)
        losses, is_clipped = torch.where(is_bounded, -dual_clip * advantages, losses), is_clipped | is_bounded
    return PolicyLoss(
        loss=(losses * response_mask).sum(),
        num_clipped=(is_clipped & response_mask).sum(),
        approx_kl=((ratio - 1 - log_ratio) * response_mask).detach().sum(),
        ratio=(ratio * response_mask).detach().sum(),
        max_log_ratio=log_ratio.detach().abs().max(),
    )


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, response_mask: Tensor, clip_range: float
) -> ValueLoss:
    """½ · max((V − G)², (clip(V, V_old ± ε) − G)²); all (B, R). Source: OpenAI baselines, ppo2."""
    clipped_values = torch.clamp(values, old_values - clip_range, old_values + clip_range)
    unclipped, clipped = (values - returns).square(), (clipped_values - returns).square()
    return ValueLoss(
        loss=0.5 * (torch.max(unclipped, clipped) * response_mask).sum(),
        num_clipped=((clipped > unclipped) & response_mask).sum(),
    )
