"""The reward client of a run, and which of its errors mean that it is worth asking again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ppo_client.client.errors import DeadlineExceeded, Unavailable, VersionChangedDuringCall
from ppo_client.ppo.config import RewardConfig

if TYPE_CHECKING:
    from ppo_client import RewardClient

# The client has tried again for `reward.timeout_s` when it raises one of these; the run waits longer.
AWAY_ERRORS: tuple[type[BaseException], ...] = (Unavailable, DeadlineExceeded, VersionChangedDuringCall)


def connect(reward: RewardConfig, run: str) -> RewardClient:
    """A client that is known to the service as `run`. Its channel opens with the first call."""
    from ppo_client import RewardClient

    # The run itself decides what to do about another version: it knows at which step it was.
    return RewardClient(list(reward.targets) or None, run=run, timeout_s=reward.timeout_s, on_version_change="follow")
