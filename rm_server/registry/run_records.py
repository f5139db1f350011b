"""What is kept of a training run: the version that it holds, and what scored it. Times in seconds since the epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rm_server.registry.records import VersionKey

RATE_WINDOW_S = 60.0
"""How long ago counts: what happened t seconds ago has the weight exp(-t / RATE_WINDOW_S) in a rate."""

LARGEST_COUNTED = 1e100
"""What a score further from 0 counts as in mean and deviation: sums of larger squares are no numbers."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A run's hold on a version, until ``lease_s`` after ``last_seen`` or the run says so.

    ``arm``: of the split that chose the version; None: no split did. ``has_ended``: the run said so. ``revision``:
    counts what runs were given, in the catalog; 0: not written there yet.
    """

    run: str
    model: str
    version: int
    digest: str
    arm: str | None
    lease_s: float
    last_seen: float
    expires_at: float
    has_ended: bool = False
    revision: int = 0

    @property
    def key(self) -> VersionKey:
        """(model, version)."""
        return (self.model, self.version)

    def is_active(self, now: float) -> bool:
        """Whether it keeps its version from being unloaded."""
        return not self.has_ended and now < self.expires_at


@dataclass(slots=True)
class RunStatistics:
    """What one run was scored with by one version.

    ``score_mean``, ``score_squares``: mean of the raw scores, and the sum of their squared deviations from it.
    ``items_per_s``, ``tokens_per_s``: at ``last_seen``, by an exponentially weighted mean (see RATE_WINDOW_S).
    """

    run: str
    model: str
    version: int
    num_items: int = 0
    num_tokens: int = 0
    score_mean: float = 0.0
    score_squares: float = 0.0
    items_per_s: float = 0.0
    tokens_per_s: float = 0.0
    last_seen: float = 0.0

    @property
    def key(self) -> tuple[str, str, int]:
        """(run, model, version)."""
        return (self.run, self.model, self.version)

    @property
    def score_std(self) -> float:
        """The standard deviation of the raw scores (of the population)."""
        return math.sqrt(self.score_squares / self.num_items) if self.num_items else 0.0

    def rates(self, now: float) -> tuple[float, float]:
        """Items and tokens per second, by now."""
        decay = _decay(now - self.last_seen)
        return self.items_per_s * decay, self.tokens_per_s * decay

    def add(self, scores: Sequence[float], tokens: int, now: float) -> None:
        """One call was answered with these raw scores."""
        scores = counted(scores)
        mean = sum(scores) / len(scores) if scores else 0.0
        squares = sum((score - mean) * (score - mean) for score in scores)
        num_items = len(scores)
        rates = num_items / RATE_WINDOW_S, tokens / RATE_WINDOW_S
        self.merge(RunStatistics(*self.key, num_items, tokens, mean, squares, *rates, now))

    def merge(self, other: RunStatistics) -> None:
        """Takes in what else is known of the same run and version.

        Mean and squared deviations as in Chan, Golub and LeVeque (1979), which loses no digits in long runs.
        """
        total = self.num_items + other.num_items
        if other.num_items:
            difference = other.score_mean - self.score_mean
            self.score_squares += (
                other.score_squares + difference * difference * self.num_items * other.num_items / total
            )
            self.score_mean += difference * other.num_items / total
        now = max(self.last_seen, other.last_seen)
        mine, others = self.rates(now), other.rates(now)
        self.items_per_s, self.tokens_per_s = mine[0] + others[0], mine[1] + others[1]
        self.num_items, self.num_tokens, self.last_seen = total, self.num_tokens + other.num_tokens, now


def counted(scores: Iterable[float]) -> list[float]:
    """The scores as they count in a mean and a deviation, both of which stay finite by that."""
    return [min(max(score, -LARGEST_COUNTED), LARGEST_COUNTED) for score in scores]


def _decay(seconds: float) -> float:
    return math.exp(-max(0.0, seconds) / RATE_WINDOW_S)
