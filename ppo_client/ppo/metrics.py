"""The row of metrics.jsonl that a step leaves behind, and the rows of samples.jsonl."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, TypeAlias

from torch import Tensor

from ppo_client.ppo.advantages import explained_variance, masked_mean_variance
from ppo_client.ppo.checkpoint import RunState
from ppo_client.ppo.config import RewardModelConfig
from ppo_client.ppo.rollout import Record, Rollout
from ppo_client.ppo.scores.dropped import DroppedEpisodes
from ppo_client.ppo.scores.normalize import NormalizerFitted
from ppo_client.ppo.scores.versions import RewardVersion, VersionChange
from ppo_client.ppo.setting_changes import SettingChange
from ppo_client.ppo.update import UpdateStatistics

Event: TypeAlias = VersionChange | SettingChange | DroppedEpisodes | NormalizerFitted
"""What a step's row tells in words, too."""


def metrics_row(
    state: RunState,
    rollout: Rollout,
    update: UpdateStatistics,
    returns: Tensor,
    *,
    kl: float,
    kl_coefficient: float,
    events: Sequence[Event],
    max_importance_weight: float,
) -> dict[str, Any]:
    """Plain numbers and strings; `…_s` are wall seconds of the main process.

    `kl` is the mean over episodes of the KL from the reference, summed over tokens, in nats; `kl_coefficient` the one
    that was used in this step; `entropy` is nats per token while sampling. Values and returns are means over tokens.
    `dropped` counts the episodes that nothing else in the row knows of.
    """
    mask, kept, main = rollout.sequences.response_mask, rollout.kept, state.versions[0]
    scores, given = rollout.scores[kept], [record.given for record in rollout.records if record.given.value is not None]
    entropy, _ = masked_mean_variance(rollout.entropies, mask)
    row = {
        "step": state.step,
        "episodes": state.episodes,
        "score_mean": float(scores.mean()),
        "score_std": float(scores.std()) if len(scores) > 1 else 0.0,
        "score_min": float(scores.min()),
        "score_max": float(scores.max()),
        "kl": kl,
        "kl_coefficient": kl_coefficient,
        "entropy": float(entropy),
        "response_tokens_mean": float(mask[kept].sum(1).float().mean()),
        "eos_rate": float(rollout.has_eos[kept].float().mean()),
        "empty_rate": sum(not one.versions for one in given) / len(given),
        "dropped": len(rollout.records) - len(given),
        "policy_loss": update.mean.policy_loss,
        "value_loss": update.mean.value_loss,
        "clip_fraction": update.mean.clip_fraction,
        "value_clip_fraction": update.mean.value_clip_fraction,
        "approx_kl": update.mean.approx_kl,
        "first_ratio": update.first.ratio,
        "first_max_log_ratio": update.first.max_log_ratio,
        "value_mean": float(rollout.values[mask].mean()),
        "return_mean": float(returns[mask].mean()),
        "explained_variance": explained_variance(rollout.values, returns, mask),
        "gradient_norm": update.gradient_norm,
        "learning_rate": update.learning_rate,
        "num_optimizer_steps": update.num_optimizer_steps,
        "stopped_early": update.stopped_early,
        "reward_model": main.model,
        "reward_version": main.version,
        "reward_digest": main.digest,
        "time_s": time.time(),
        **rollout.seconds,
    }
    if update.critic_gradient_norm is not None:
        row["critic_gradient_norm"] = update.critic_gradient_norm
    if len(state.versions) > 1:
        row |= _of_each_model(state.versions, rollout)
    if rollout.sampled_log_probs is not None:
        row |= _off_policy(rollout, rollout.sampled_log_probs, max_importance_weight)
    if events:
        row["events"] = [event.to_event() for event in events]
    return row


def _of_each_model(versions: Sequence[RewardVersion], rollout: Rollout) -> dict[str, Any]:
    """Where the score is a sum: the models' own means; none where all responses are empty."""
    scored = [record.given.parts for record in rollout.records if record.given.parts]
    row: dict[str, Any] = {"reward_versions": [f"{version} ({version.digest:.12})" for version in versions]}
    models = [version.model for version in versions]
    for version, values in zip(versions, zip(*scored, strict=True), strict=bool(scored)):
        name = version.model if models.count(version.model) == 1 else version
        row[f"score_mean/{name}"] = sum(values) / len(values)
    return row


def _off_policy(rollout: Rollout, sampled_log_probs: Tensor, max_importance_weight: float) -> dict[str, Any]:
    """Of responses that an older policy or another engine wrote, see `staleness.py`."""
    mask = rollout.sequences.response_mask
    log_ratio = (rollout.log_probs - sampled_log_probs)[mask]
    ratio = log_ratio.exp()
    return {
        "staleness": int(rollout.is_stale),
        "importance_weight_mean": float(ratio.clamp(max=max_importance_weight).mean()),
        "importance_weight_truncated": float((ratio > max_importance_weight).float().mean()),
        "stale_max_log_ratio": float(log_ratio.abs().max()),
        "sampled_mean_abs_log_ratio": float(log_ratio.abs().mean()),
    }


def sample_rows(step: int, rollout: Rollout, parts: Sequence[RewardModelConfig], num_rows: int) -> list[dict[str, Any]]:
    """`model`, `version` and `digest` are None for responses without text, which nothing scored; none is dropped."""
    records = [record for record in rollout.records if record.given.value is not None]
    return [_sample_row(step, record, parts) for record in records[:num_rows]]


def _sample_row(step: int, record: Record, parts: Sequence[RewardModelConfig]) -> dict[str, Any]:
    given = record.given
    main = given.versions[0] if given.versions else None
    row: dict[str, Any] = {
        "step": step,
        "prompt": record.prompt,
        "completion": record.completion,
        "score": given.value,
        "model": main.model if main else None,
        "version": main.version if main else None,
        "digest": main.digest if main else None,
    }
    if len(given.versions) > 1:
        row["rewards"] = [
            {
                "model": version.model,
                "version": version.version,
                "digest": version.digest,
                "score": score,
                "weight": part.weight,
            }
            for version, score, part in zip(given.versions, given.parts, parts, strict=True)
        ]
    return row
