"""What is looked at beside the answers: how each version's scores are spread of late, and what its shadows say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from rm_server.registry.records import Snapshot, VersionKey
from rm_server.scoring.recent_scores import RecentScores
from rm_server.scoring.routing import Route
from rm_server.scoring.scorer import ScoreCall
from rm_server.scoring.shadowing import Shadowing


class WatchMetrics(Protocol):
    """What is counted here; see rm_server/metrics."""

    def recent_scores(self, key: VersionKey, mean: float, std: float, calibrated_mean: float | None) -> None: ...


class ScoreWatch:
    """Lives on the event loop; `scored` is called for each answered call, and takes no time to speak of."""

    def __init__(self, get_snapshot: Callable[[], Snapshot], shadowing: Shadowing, metrics: WatchMetrics) -> None:
        self._get_snapshot = get_snapshot
        self._shadowing = shadowing
        self._metrics = metrics
        self._recent: dict[VersionKey, RecentScores] = {}

    def scored(self, call: ScoreCall, route: Route, scores: Sequence[float | None]) -> None:
        """``scores``: raw, one for each completion in order; None: it failed."""
        there = [score for score in scores if score is not None]
        if not there:
            return
        recent = self._recent.setdefault(route.key, RecentScores())
        recent.add(there)
        record = self._get_snapshot().versions.get(route.key)
        calibration = record.calibration if record is not None else None
        calibrated_mean = None if calibration is None else calibration.apply(recent.mean)
        self._metrics.recent_scores(route.key, recent.mean, recent.std, calibrated_mean)
        self._shadowing.scored(call, route, scores)
