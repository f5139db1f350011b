"""Items that wait or are being computed, by what they compute: the same one is not computed twice."""

from __future__ import annotations

from collections.abc import Sequence

from rm_server.engine.work import Work


class UnderWay:
    """One of each run that waits for it, so that no run waits for its turn in another's queue."""

    def __init__(self) -> None:
        self._works: dict[bytes, list[Work]] = {}

    def add(self, work: Work) -> None:
        """It was submitted; it has a cache key."""
        assert work.cache_key is not None
        self._works.setdefault(work.cache_key, []).append(work)

    def remove(self, work: Work) -> None:
        """It was answered, or nobody wants it any more; nothing happens when it is not here."""
        if work.cache_key is not None and work in (same := self._works.get(work.cache_key, [])):
            same.remove(work)
            if not same:
                del self._works[work.cache_key]

    def same_as(self, cache_key: bytes) -> Sequence[Work]:
        """All that compute this."""
        return self._works.get(cache_key, ())

    def joinable(self, cache_key: bytes, run: str, priority: int, deadline: float | None) -> Work | None:
        """Work for the same item that is at a worker, or waits as this run's; not dropped before this deadline."""
        for work in self.same_as(cache_key):
            call = work.call
            if call is None or not work.is_wanted:
                continue
            if work.is_waiting and (call.run != run or call.priority < priority):
                continue
            if call.deadline is None or (deadline is not None and deadline <= call.deadline):
                return work
        return None
