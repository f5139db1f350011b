"""Mean and spread of a version's scores of late: each counts less, the more came after it. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from rm_server.registry.run_records import counted

MEMORY_ITEMS = 1000
"""A score's weight falls to 1/e when so many came after it."""


class RecentScores:
    """Exponentially weighted moments, free of the bias of the beginning: the first scores count as they are."""

    def __init__(self) -> None:
        self.mean = 0.0
        self._variance = 0.0
        self._weight = 0.0

    @property
    def std(self) -> float:
        """The standard deviation."""
        return math.sqrt(self._variance)

    def add(self, scores: Sequence[float]) -> None:
        """Scores of one call, which count alike."""
        if not scores:
            return
        scores = counted(scores)
        mean = fmean(scores)
        variance = fmean((score - mean) ** 2 for score in scores)
        kept = math.exp(-len(scores) / MEMORY_ITEMS)
        self._weight = kept * self._weight + (1 - kept)
        share = (1 - kept) / self._weight
        apart = mean - self.mean
        self.mean += share * apart
        self._variance = (1 - share) * (self._variance + share * apart**2) + share * variance
