"""The KL penalty: per-token estimators, and the controller of its coefficient β."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppo_client.ppo.config import KLConfig
from ppo_client.ppo.errors import NonFiniteKL

# The adaptive controller's error is clipped to this (Ziegler et al. 2019, section 2.2).
_MAX_RELATIVE_ERROR = 0.2


def kl_per_token(log_probs: Tensor, reference_log_probs: Tensor, estimator: str) -> Tensor:
    """Estimates of KL(π ‖ π_ref) at tokens sampled from π, any shape, in nats.

    With r = π_ref / π: k1 = −log r (unbiased, may be negative), k2 = (log r)² / 2 (biased, low variance),
    k3 = r − 1 − log r (unbiased, never negative). Source: Schulman, "Approximating KL divergence" (2020).
    """
    difference = log_probs - reference_log_probs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    if estimator == "k3":
        return (-difference).expm1() + difference
    raise ValueError(f"no KL estimator {estimator!r}; there are k1, k2 and k3")


def check_finite(log_probs: Tensor, reference_log_probs: Tensor, response_ids: Tensor) -> None:
    """Raises NonFiniteKL where the two, float32 (B, R), are infinitely far apart, or one of them is no number."""
    # The value loss squares what rewards are made of: fp32's lowest number for −∞ must not pass.
    is_wrong = ~(log_probs - reference_log_probs).square().isfinite()
    if not bool(is_wrong.any()):
        return
    row, column = (int(index) for index in torch.nonzero(is_wrong)[0])
    raise NonFiniteKL(
        f"the KL from the reference is not finite at {int(is_wrong.sum())} tokens: the first, token "
        f"{int(response_ids[row, column])} in place {column} of its response, has log π = "
        f"{float(log_probs[row, column]):.4g} and log π_ref = {float(reference_log_probs[row, column]):.4g}. Nothing "
        "was learnt from this batch. Where log π_ref is the lower one, the reference rules out what the policy writes: "
        "look at whether it has the policy's vocabulary; where one is NaN, at that model's weights"
    )


def coefficient_set(config: KLConfig, step: int) -> float:
    """β for the step after `step` as the settings alone say: of the schedule, or where a controller begins."""
    if config.controller != "scheduled":
        return config.coefficient
    share = min(step / config.schedule_steps, 1.0)
    return (1 - share) * config.coefficient + share * config.final_coefficient


def next_coefficient(config: KLConfig, coefficient: float, episode_kl: float, *, step: int, num_episodes: int) -> float:
    """β for the step after `step`, which counts from 1 and had β = `coefficient`.

    `episode_kl`: the mean over the step's episodes of the KL summed over tokens, in nats; `num_episodes`: of the step.
    Adaptive: β · (1 + clip(KL / target − 1, ±0.2) · n / horizon). Source: Ziegler et al. 2019, section 2.2.
    """
    if config.controller == "fixed":
        return coefficient
    if config.controller == "scheduled":
        return coefficient_set(config, step)
    if not math.isfinite(episode_kl):
        raise ValueError(f"the KL is {episode_kl}; β cannot be adapted by it")
    error = max(-_MAX_RELATIVE_ERROR, min(_MAX_RELATIVE_ERROR, episode_kl / config.target - 1))
    return coefficient * (1 + error * num_episodes / config.horizon)
