"""The row of metrics.jsonl that a step leaves behind, and the rows of samples.jsonl."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ppo_client.ppo.advantages import explained_variance, masked_mean_variance
from ppo_client.ppo.checkpoint import RunState
from ppo_client.ppo.rollout import Rollout
from ppo_client.ppo.update import UpdateStatistics
from ppo_client.ppo.versions import VersionChange


def metrics_row(
    state: RunState,
    rollout: Rollout,
    update: UpdateStatistics,
    returns: Tensor,
    *,
    kl: float,
    kl_coefficient: float,
    changes: Sequence[VersionChange],
) -> dict[str, Any]:
    """Plain numbers and strings; `…_s` are wall seconds of the main process.

    `kl` is the mean over episodes of the KL from the reference, summed over tokens, in nats; `kl_coefficient` the one
    that was used in this step; `entropy` is nats per token while sampling.
    """
    assert state.version is not None, "a step without a score"
    mask = rollout.sequences.response_mask
    entropy, _ = masked_mean_variance(rollout.entropies, mask)
    row = {
        "step": state.step,
        "episodes": state.episodes,
        "score_mean": float(rollout.scores.mean()),
        "score_std": float(rollout.scores.std()) if len(rollout.scores) > 1 else 0.0,
        "score_min": float(rollout.scores.min()),
        "score_max": float(rollout.scores.max()),
        "kl": kl,
        "kl_coefficient": kl_coefficient,
        "entropy": float(entropy),
        "response_tokens_mean": float(mask.sum(1).float().mean()),
        "eos_rate": float(rollout.has_eos.float().mean()),
        "empty_rate": sum(record.version is None for record in rollout.records) / len(rollout.records),
        "policy_loss": update.mean.policy_loss,
        "value_loss": update.mean.value_loss,
        "clip_fraction": update.mean.clip_fraction,
        "value_clip_fraction": update.mean.value_clip_fraction,
        "approx_kl": update.mean.approx_kl,
        "first_ratio": update.first.ratio,
        "first_max_log_ratio": update.first.max_log_ratio,
        "explained_variance": explained_variance(rollout.values, returns, mask),
        "gradient_norm": update.gradient_norm,
        "learning_rate": update.learning_rate,
        "num_optimizer_steps": update.num_optimizer_steps,
        "stopped_early": update.stopped_early,
        "reward_model": state.version.model,
        "reward_version": state.version.version,
        "reward_digest": state.version.digest,
        "time_s": time.time(),
        **rollout.seconds,
    }
    if changes:
        row["events"] = [
            {
                "kind": "version_changed",
                "text": str(change),
                "before": change.before.version,
                "before_digest": change.before.digest,
                "after": change.after.version,
                "after_digest": change.after.digest,
            }
            for change in changes
        ]
    return row


def sample_rows(step: int, rollout: Rollout, num_rows: int) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "prompt": record.prompt,
            "completion": record.completion,
            "score": record.score,
            "model": record.version.model if record.version else None,
            "version": record.version.version if record.version else None,
            "digest": record.version.digest if record.version else None,
        }
        for record in rollout.records[:num_rows]
    ]
