"""What each run was scored with, how much, and how its raw scores are spread."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class RunStatistics:
    """One run on one model. Mean and deviation are those of ``version``, the last one that scored it.

    ``items`` and ``tokens`` count all that got a score. ``last_seen`` in seconds since the epoch.
    """

    run: str
    model: str
    version: int
    arm: str | None
    items: int = 0
    tokens: int = 0
    last_seen: float = 0.0
    num_scores: int = 0
    score_mean: float = 0.0
    _squares: float = 0.0

    @property
    def score_std(self) -> float:
        """The standard deviation of the raw scores (of the population)."""
        return math.sqrt(self._squares / self.num_scores) if self.num_scores else 0.0

    def add(self, scores: Sequence[float]) -> None:
        """Merges mean and squared deviations (Chan, Golub and LeVeque, 1979), which loses no digits in long runs."""
        if not scores:
            return
        mean = sum(scores) / len(scores)
        squares = sum((score - mean) * (score - mean) for score in scores)
        total = self.num_scores + len(scores)
        difference = mean - self.score_mean
        self.score_mean += difference * len(scores) / total
        self._squares += squares + difference * difference * self.num_scores * len(scores) / total
        self.num_scores = total


class AllRunStatistics:
    """At most ``max_known`` of them; the one seen longest ago goes first."""

    def __init__(self, max_known: int) -> None:
        self._max_known = max_known
        self._by_run: dict[tuple[str, str], RunStatistics] = {}

    def add(
        self, run: str, model: str, version: int, arm: str | None, *, scores: Sequence[float], tokens: int, now: float
    ) -> None:
        """One call was answered with these raw scores."""
        statistics = self._by_run.pop((run, model), None) or RunStatistics(run, model, version, arm)
        if statistics.version != version:
            statistics = RunStatistics(run, model, version, arm, items=statistics.items, tokens=statistics.tokens)
        self._by_run[run, model] = statistics
        statistics.arm = arm
        statistics.items += len(scores)
        statistics.tokens += tokens
        statistics.last_seen = now
        statistics.add(scores)
        if len(self._by_run) > self._max_known:
            del self._by_run[next(iter(self._by_run))]

    def get(self, run: str, model: str) -> RunStatistics | None:
        """What is known of a run on a model."""
        return self._by_run.get((run, model))

    def __iter__(self) -> Iterator[RunStatistics]:
        return iter(list(self._by_run.values()))
