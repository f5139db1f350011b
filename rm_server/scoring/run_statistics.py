"""What runs were scored with since it was last written to the catalog."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rm_server.registry.run_records import RunStatistics


class PendingStatistics:
    """By run and version, what is to be added to what the catalog has.

    At most ``max_known`` of them, for a catalog that is away for long; the one seen longest ago goes first.
    """

    def __init__(self, max_known: int) -> None:
        self._max_known = max_known
        self._pending: dict[tuple[str, str, int], RunStatistics] = {}

    def add(self, run: str, model: str, version: int, *, scores: Sequence[float], tokens: int, now: float) -> None:
        """One call was answered with these raw scores."""
        key = (run, model, version)
        statistics = self._pending.pop(key, None) or RunStatistics(*key, last_seen=now)
        statistics.add(scores, tokens, now)
        self._pending[key] = statistics
        if len(self._pending) > self._max_known:
            del self._pending[next(iter(self._pending))]

    def take(self) -> list[RunStatistics]:
        """All of it, which is pending no longer."""
        taken, self._pending = self._pending, {}
        return list(taken.values())

    def put_back(self, statistics: Iterable[RunStatistics]) -> None:
        """What was taken could not be written."""
        newer, self._pending = self._pending, {part.key: part for part in statistics}
        for key, part in newer.items():
            if (older := self._pending.get(key)) is None:
                self._pending[key] = part
            else:
                older.merge(part)

    def __iter__(self) -> Iterator[RunStatistics]:
        return iter(list(self._pending.values()))
