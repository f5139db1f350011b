"""A run's scores on one scale, whichever versions gave them: each by the map that was fitted to its versions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ppo_client.ppo.checkpoint import RunState
from ppo_client.ppo.metrics import Event
from ppo_client.ppo.rollout import Rollout
from ppo_client.ppo.scores.normalize import ScoreNormalizer
from ppo_client.ppo.scores.versions import RewardVersion, VersionChange


def first_normalizer(
    rollout: Rollout, state: RunState, found: Sequence[Event], num_wanted: int
) -> tuple[ScoreNormalizer, int]:
    """The map by responses of the policy as it starts, and how many of them fitted it. Raises InvalidScores."""
    if not _is_other_scale(found):
        return ScoreNormalizer.fit(rollout.scores[rollout.kept]), int(rollout.kept.sum())
    # The others are on a scale that training will not see.
    rows = _rows_by_versions(rollout, state.versions)[state.versions] & rollout.kept
    return state.normalizer.fit_again(rollout.scores[rows], num_wanted), int(rows.sum())


def on_one_scale(
    rollout: Rollout,
    before: RunState,
    now: tuple[RewardVersion, ...],
    found: Sequence[Event],
    num_wanted: int,
) -> tuple[Tensor, ScoreNormalizer]:
    """The step's scores (B,), and the map to go on with: a run that goes on with another scale fits its map to that.

    `before`: as the step began; `now`: the versions at its end. `num_wanted` 0: nothing is normalised.
    """
    scores, old = rollout.scores, before.normalizer
    # No more than the step has: of a run that drops some in each, the map would be provisional for ever.
    num_wanted = min(num_wanted, int(rollout.kept.sum()))
    if not num_wanted or not (_is_other_scale(found) or old.is_provisional):
        return old(scores), old
    if not _is_other_scale(found):
        new = old.fit_again(scores[rollout.kept], num_wanted)
        return new(scores), new
    normalized, normalizer = old(scores), old
    for versions, rows in _rows_by_versions(rollout, now).items():
        if versions != before.versions:
            new = old.fit_again(scores[rows & rollout.kept], num_wanted)
            normalized = torch.where(rows, new(scores), normalized)
            if versions == now:  # others came in between, and the step's end has done with them
                normalizer = new
    return normalized, normalizer


def _is_other_scale(found: Sequence[Event]) -> bool:
    """Whether scores came that cannot be compared with those before them."""
    return any(isinstance(event, VersionChange) and not event.is_calibrated for event in found)


def _rows_by_versions(rollout: Rollout, now: tuple[RewardVersion, ...]) -> dict[tuple[RewardVersion, ...], Tensor]:
    """Which rows, bool (B,), which versions scored; those that none did are with `now`'s."""
    given = [record.given.versions or now for record in rollout.records]
    device = rollout.scores.device
    return {versions: torch.tensor([one == versions for one in given], device=device) for versions in set(given)}
