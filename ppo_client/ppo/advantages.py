"""Generalised advantage estimation, and whitening over the tokens that count."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    rewards: Tensor, values: Tensor, response_mask: Tensor, *, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both (B, R) and 0 where the mask is False.

    An episode ends with its last token: the value after it is 0. `rewards` and `values` are (B, R); what they hold
    where the mask is False does not matter. Source: Schulman et al. 2016, equation 16.
    """
    rewards, values = torch.where(response_mask, rewards, 0.0), torch.where(response_mask, values, 0.0)
    advantages = torch.zeros_like(values)
    following_value = following_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        following_advantage = (delta + gamma * gae_lambda * following_advantage) * response_mask[:, t]
        following_value = values[:, t]
        advantages[:, t] = following_advantage
    return advantages, advantages + values


def whiten(values: Tensor, mask: Tensor, *, keep_mean: bool) -> Tensor:
    """Scaled to variance 1 over all tokens that count, with mean 0 or the mean they had; 0 elsewhere.

    `values` and `mask` are (B, R) of the whole step, so the statistics are those of all processes.
    """
    mean, variance = masked_mean_variance(values, mask)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    if keep_mean:
        whitened = whitened + mean
    return whitened * mask


def masked_mean_variance(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance over the tokens that count; variance 0 where there is but one."""
    kept = values[mask]
    return kept.mean(), kept.var() if kept.numel() > 1 else torch.zeros_like(kept.mean())


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 − Var(returns − values) / Var(returns): 1 is a perfect critic, 0 one that knows the mean only."""
    _, unexplained = masked_mean_variance(returns - values, mask)
    _, total = masked_mean_variance(returns, mask)
    return float(1 - unexplained / total) if float(total) > 0 else 0.0
