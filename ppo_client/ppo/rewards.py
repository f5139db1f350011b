"""From one score per response to one reward per token."""

from __future__ import annotations

import torch
from torch import Tensor

from ppo_client.ppo.config import RewardConfig
from ppo_client.ppo.models.sequences import last_token


def shaped_scores(scores: Tensor, has_eos: Tensor, config: RewardConfig) -> Tensor:
    """Scores, normalised ones if so, are clipped, then judged for a missing EOS; all (B,).

    The EOS rule comes last, so that its value is in the units of what PPO sees.
    """
    shaped = scores if config.clip is None else scores.clamp(-config.clip, config.clip)
    if config.missing_eos_penalty is not None:
        shaped = shaped - config.missing_eos_penalty * ~has_eos
    if config.missing_eos_score is not None:
        shaped = torch.where(has_eos, shaped, config.missing_eos_score)
    return shaped


def token_rewards(scores: Tensor, kl: Tensor, response_mask: Tensor, coefficient: float) -> Tensor:
    """−β·KL at each token, plus the score once, at the last one. Scores (B,), the others (B, R).

    Where no token counts the score, which is NaN, does not either.
    """
    rewards = torch.where(response_mask, -coefficient * kl, 0.0)
    rows = torch.arange(len(scores), device=scores.device)
    rewards[rows, last_token(response_mask)] += torch.where(response_mask.any(1), scores, 0.0)
    return rewards


def reward_facts(scores: Tensor, shaped: Tensor, rewards: Tensor, clip: float | None) -> dict[str, float]:
    """What PPO is given to maximise, for the row of a step: means over its episodes.

    `scores` (B,) are as they were before `shaped_scores` made `shaped` (B,) of them, `rewards` (B, R) what
    `token_rewards` made of those. Their sum over an episode is Σ (score − β·KL), the objective of Ziegler et al. 2019.
    """
    facts = {"shaped_score_mean": float(shaped.mean()), "rlhf_reward_mean": float(rewards.sum(1).mean())}
    if clip is not None:
        facts["score_clip_fraction"] = float((scores.abs() > clip).float().mean())
    return facts
