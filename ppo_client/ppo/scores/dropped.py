"""Episodes without a score, for an item of theirs failed: nothing is learnt from them (`reward.on_failed_item`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ppo_client.ppo.rollout import Rollout


@dataclass(frozen=True, slots=True)
class DroppedEpisodes:
    """How many of a step's, and what the first of them failed by."""

    num_dropped: int
    num_episodes: int
    error: str

    def to_event(self) -> dict[str, Any]:
        """For metrics.jsonl."""
        return {"kind": "episodes_dropped", "text": str(self), "dropped": self.num_dropped}

    def __str__(self) -> str:
        return f"{self.num_dropped} of {self.num_episodes} episodes dropped: {self.error}"


def without_dropped(rollout: Rollout) -> tuple[Rollout, DroppedEpisodes | None]:
    """The rollout with response masks that are False in the rows without a score, so that no token of theirs counts.

    The rows stay: minibatches are the same, and each process has its share of them.
    """
    has_score = [record.given.value is not None for record in rollout.records]
    if all(has_score):
        return rollout, None
    kept = torch.tensor(has_score, device=rollout.scores.device).unsqueeze(1)

    def zeroed(values: Tensor) -> Tensor:
        return torch.where(kept, values, 0.0)

    sampled = rollout.sampled_log_probs
    found = replace(
        rollout,
        sequences=replace(rollout.sequences, response_mask=rollout.sequences.response_mask & kept),
        log_probs=zeroed(rollout.log_probs),
        reference_log_probs=zeroed(rollout.reference_log_probs),
        values=zeroed(rollout.values),
        entropies=zeroed(rollout.entropies),
        sampled_log_probs=None if sampled is None else zeroed(sampled),
    )
    return found, DroppedEpisodes(
        num_dropped=has_score.count(False),
        num_episodes=len(has_score),
        error=rollout.records[has_score.index(False)].given.error,
    )
