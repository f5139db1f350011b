"""Batches that are computed again: their worker died, or they failed as a whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace

from rm_server.engine.crew import SentBatch
from rm_server.engine.work import Work, fail_all
from rm_server.errors import RmError, WorkerFailed
from rm_server.registry.records import VersionKey

MAX_DEATHS = 2
"""A batch that was being computed when so many workers died is not tried again as it is."""


class Again:
    """They go before what is in the queue. Lives on the event loop."""

    def __init__(self) -> None:
        self._batches: deque[SentBatch] = deque()

    def __bool__(self) -> bool:
        return bool(self._batches)

    def in_halves(self, sent: SentBatch, num_deaths: int = 0) -> None:
        """Too large for the memory, or one item is bad: in halves, until the guilty one stands alone."""
        self._batches += sent.halves(num_deaths)

    def after_death(self, batches: Iterable[SentBatch], reason: str) -> None:
        """The first was being computed: it is tried once more, then in halves. The others were only in the pipe."""
        rest = list(batches)
        if rest and rest[0].is_background:
            fail_all(rest.pop(0).works, WorkerFailed(f"The worker process died at background work; {reason}."))
        elif rest:
            rest[0].num_deaths += 1
            if rest[0].num_deaths >= MAX_DEATHS:
                self._suspect(rest.pop(0), reason)
        self._batches.extendleft(reversed(rest))

    def next(self, keys: set[VersionKey], now: float, expire: Callable[[Work], None]) -> SentBatch | None:
        """What a worker that holds these versions can compute of the first batch; without what nobody waits for.

        A worker lacks what could not be loaded into it again, and so none may hold all versions of a mixed batch.
        ``expire`` is told of an item whose deadline has passed.
        """
        for sent in list(self._batches):
            for work in sent.works:
                if work.call is not None and work.call.deadline is not None and work.call.deadline <= now:
                    expire(work)
            sent.works = [work for work in sent.works if work.is_wanted]
            held = [work for key, works in sent.by_version.items() if key in keys for work in works]
            left = [work for key, works in sent.by_version.items() if key not in keys for work in works]
            if not left:
                self._batches.remove(sent)
            sent.works = left
            if held:
                return replace(sent, works=held)
        return None

    def fail(self, error: RmError) -> None:
        """Nobody will compute any of them."""
        batches, self._batches = self._batches, deque()
        fail_all((work for sent in batches for work in sent.works), error)

    def fail_version(self, key: VersionKey, error: RmError) -> None:
        """Nobody can compute those of this version; what is left of a batch is looked at when its turn comes."""
        for sent in self._batches:
            fail_all(sent.by_version.get(key, ()), error)

    def _suspect(self, sent: SentBatch, reason: str) -> None:
        """Halves a batch until the item that kills workers stands alone. Others need not wait for that."""
        if len(sent.works) > 1:
            self.in_halves(sent, num_deaths=MAX_DEATHS - 1)
            return
        error = WorkerFailed(
            f"The worker process died each time it computed this item; the last time, {reason}. "
            "Send a shorter one, or look for out-of-memory kills in the system's log."
        )
        fail_all(sent.works, error)
