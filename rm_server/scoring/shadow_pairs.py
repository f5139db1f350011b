"""Pairs of scores on their way from the event loop to the catalog: bounded, in batches, by a thread."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np

from rm_server.config import ShadowSettings
from rm_server.engine.tasks import Tasks
from rm_server.errors import RmError
from rm_server.registry.catalog import Catalog
from rm_server.registry.records import VersionKey
from rm_server.registry.shadows import ShadowPair, add_pairs
from rm_server.scoring.comparison.agreement import deviation, pearson

WINDOW_PAIRS = 2000
"""The gauges of agreement are about the last so many pairs."""

MIN_GAUGED_PAIRS = 20

_log = logging.getLogger(__name__)


class PairMetrics(Protocol):
    """What is counted here; see rm_server/metrics."""

    def shadow_pair_lost(self) -> None: ...
    def shadow_agreement(self, key: VersionKey, pearson: float | None, shift_std: float | None) -> None: ...


class PairBuffer:
    """Lives on the event loop. While the catalog is away, the newest ``max_buffered_pairs`` are kept."""

    def __init__(
        self,
        catalog: Catalog,
        settings: ShadowSettings,
        metrics: PairMetrics,
        is_shadow: Callable[[VersionKey], bool],
    ) -> None:
        self._catalog = catalog
        self._settings = settings
        self._metrics = metrics
        self._is_shadow = is_shadow
        self._waiting: deque[ShadowPair] = deque()
        self._windows: dict[VersionKey, _Window] = {}
        self._one_flush = asyncio.Lock()
        self._tasks = Tasks()

    def add(self, pairs: Iterable[ShadowPair]) -> None:
        """Takes pairs; where there are too many, the oldest go."""
        for pair in pairs:
            self._waiting.append(pair)
            self._windows.setdefault((pair.model, pair.shadow_version), _Window()).add(pair)
        while len(self._waiting) > self._settings.max_buffered_pairs:
            self._waiting.popleft()
            self._metrics.shadow_pair_lost()

    async def flush(self) -> None:
        """Writes what there is. Raises CatalogUnavailable and StorageFull; nothing is lost then.

        Goes on when the caller is cancelled, so that nothing is written twice.
        """
        await self._tasks.to_the_end(self._flush())

    async def _flush(self) -> None:
        async with self._one_flush:
            batch, self._waiting = list(self._waiting), deque()
            try:
                await asyncio.to_thread(add_pairs, self._catalog, batch, self._settings.max_pairs)
            except Exception:
                newer, self._waiting = self._waiting, deque(batch)
                self._waiting.extend(newer)
                raise

    async def stop(self) -> None:
        """Writes what there is, once more."""
        try:
            await self.flush()
        except RmError as error:
            _log.warning("%d pairs of scores are lost with this server: %s", len(self._waiting), error)

    async def run(self) -> None:
        """Flushes for ever, and keeps the gauges."""
        while True:
            await asyncio.sleep(self._settings.flush_interval_s)
            try:
                self._show()
                await self.flush()
            except RmError as error:
                _log.warning("%d pairs of scores wait for the catalog: %s", len(self._waiting), error)
            except Exception:
                # Whatever it is: who gives up here never writes a pair again.
                _log.exception("Pairs of scores could not be written; the next try comes soon.")

    def _show(self) -> None:
        for key in [key for key in self._windows if not self._is_shadow(key)]:
            del self._windows[key]
            self._metrics.shadow_agreement(key, None, None)
        for key, window in self._windows.items():
            self._metrics.shadow_agreement(key, *window.agreement())


class _Window:
    """The last pairs of a shadow."""

    def __init__(self) -> None:
        self._pairs: deque[tuple[int, float, float]] = deque(maxlen=WINDOW_PAIRS)

    def add(self, pair: ShadowPair) -> None:
        self._pairs.append((pair.version, pair.score, pair.shadow_score))

    def agreement(self) -> tuple[float | None, float | None]:
        """Pearson's correlation, and the mean difference in standard deviations of the score.

        With the version that has most pairs here; None where they are too few, or never differ.
        """
        ((version, num_pairs),) = Counter(version for version, _, _ in self._pairs).most_common(1)
        if num_pairs < MIN_GAUGED_PAIRS:
            return None, None
        pairs = [scores for of_version, *scores in self._pairs if of_version == version]
        scores, shadow_scores = np.array(pairs, np.float64).T
        correlation, std = pearson(scores, shadow_scores), deviation(scores)
        return correlation, None if std is None else float((shadow_scores - scores).mean()) / std
