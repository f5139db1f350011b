"""The workers of one device: all hold the same versions, and a dead one is replaced."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from rm_server.engine.host import LoadOrder, LoadReport, attempt
from rm_server.engine.tasks import Tasks
from rm_server.engine.work import Work
from rm_server.engine.workers import Worker, WorkerDied
from rm_server.errors import RmError, WorkerFailed
from rm_server.registry.records import VersionKey, version_name

Check = Callable[[LoadReport], None]
"""Raises what is wrong with a version, judging by what a worker reports."""

Verify = Callable[[], None]
"""Raises an RmError where a version's files are not what they were when it was loaded first. Called in a thread."""

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0

WATCH_S = 1.0
"""How often is looked whether a worker hangs."""

MAX_RELOAD_DEATHS = 3
"""A version at which so many new workers died is given up, so that the others can serve again."""

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class SentBatch:
    """A batch on its way to a worker, in its pipe, or being computed. ``num_deaths``: of workers computing it.

    ``sent_at`` on `time.perf_counter`. ``is_background``: not tried again whatever happens. ``is_mixed``: there may be
    items of other versions than ``key``. ``is_alone``: as it was sent, no other worker had anything to do.
    """

    key: VersionKey
    works: list[Work]
    num_deaths: int = 0
    sent_at: float = 0.0
    is_background: bool = False
    is_mixed: bool = False
    is_alone: bool = False

    @property
    def num_tokens(self) -> int:
        """Of all items."""
        return sum(work.num_tokens for work in self.works)

    def halves(self, num_deaths: int = 0) -> list[SentBatch]:
        """To be computed one by one, where something is wrong with the whole."""
        middle = len(self.works) // 2
        parts = self.works[:middle], self.works[middle:]
        return [SentBatch(self.key, works, num_deaths, is_mixed=self.is_mixed) for works in parts]

    @property
    def by_version(self) -> dict[VersionKey, list[Work]]:
        """The items of each version; they lie side by side in the batch, in this order."""
        if not self.is_mixed:
            return {self.key: self.works}
        found: dict[VersionKey, list[Work]] = {}
        for work in self.works:
            found.setdefault(self.key if work.call is None else work.call.key, []).append(work)
        return found


@dataclass(eq=False, slots=True)
class Seat:
    """A place for a worker, with its ``number`` from 0. ``worker`` None: it died and the next one is not ready yet.

    ``keys``: the versions it holds. ``in_flight``: what it was sent, oldest first; it computes the first one, and
    should be sent another from ``refill_at`` on (event loop's clock), shortly before it is done with it. ``wakes_at``:
    for which of these times somebody set the alarm. ``began_at``: when it began with the first one.
    """

    number: int
    worker: Worker | None = None
    keys: set[VersionKey] = field(default_factory=set)
    in_flight: deque[SentBatch] = field(default_factory=deque)
    refill_at: float = 0.0
    wakes_at: float = 0.0
    began_at: float = 0.0


class CrewListener(Protocol):
    """What the crew tells whoever gives it work."""

    def on_death(self, seat: Seat, reason: str) -> None:
        """The worker of a seat died; what is in flight there will not be answered."""

    def on_ready(self) -> None:
        """A worker is ready to work."""

    def is_stuck(self, seat: Seat) -> bool:
        """Whether a worker has computed for so long that it will never be done."""

    def on_outage(self, error: WorkerFailed) -> None:
        """No worker is up, and starting one failed; it will be tried again."""

    def on_lost(self, key: VersionKey, error: RmError) -> None:
        """No worker could load this version again."""


class Crew:
    """Starts, restarts and stops workers, ends those that hang, and keeps the same versions in all of them.

    Lives on the event loop.
    """

    def __init__(self, make_worker: Callable[[int], Worker], num_workers: int, listener: CrewListener) -> None:
        """``make_worker`` is given the number of the seat that the worker is for."""
        self._make_worker = make_worker
        self._listener = listener
        self.seats = [Seat(number) for number in range(num_workers)]
        self.is_down = False
        """No worker is up and the last attempt to start one failed."""
        self._orders: dict[VersionKey, tuple[LoadOrder, Check, Verify]] = {}
        # One change of what the workers hold at a time, so that a new worker cannot miss one.
        self._changes = asyncio.Lock()
        self._refills = Tasks()

    @property
    def num_ready(self) -> int:
        """Workers that are up."""
        return sum(seat.worker is not None for seat in self.seats)

    @property
    def pids(self) -> list[int]:
        """The processes that compute."""
        return [seat.worker.pid for seat in self.seats if seat.worker is not None]

    async def start(self) -> None:
        """Starts all workers. Raises WorkerFailed when one of them does not come up; then none is left."""
        outcomes = await asyncio.gather(*(self._started(seat) for seat in self.seats), return_exceptions=True)
        for seat, outcome in zip(self.seats, outcomes, strict=True):
            seat.worker = None if isinstance(outcome, BaseException) else outcome
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                await self.stop()
                raise outcome
        for seat in self.seats:
            # One that died while the others were still starting was in no seat yet.
            if seat.worker is not None and not seat.worker.is_alive:
                self._died(seat.worker, "it ended right after its start")
        self._refills.spawn(self._watch())

    async def stop(self) -> None:
        """Ends all workers at once, whatever they do."""
        await self._refills.cancel()
        workers = [seat.worker for seat in self.seats if seat.worker is not None]
        for seat in self.seats:
            seat.worker = None
            seat.keys.clear()
        await asyncio.gather(*(worker.stop() for worker in workers))

    async def load(self, order: LoadOrder, check: Check, verify: Verify) -> list[LoadReport]:
        """Loads and checks a version in all workers, or in none.

        One worker tries first, so that a broken version costs the others nothing. A worker that comes later loads it
        when ``verify`` has found nothing wrong. Must not be cancelled.
        """
        async with self._changes:
            seats = [(seat, seat.worker) for seat in self.seats if seat.worker is not None]
            if not seats:
                raise WorkerFailed(
                    "No worker process is up. Try again in a few seconds, and look at the server's log.",
                    retry_after_s=FIRST_PAUSE_S,
                )
            reports: list[LoadReport] = []
            try:
                for some in (seats[:1], seats[1:]):
                    reports += await _all(*(worker.load(order) for _, worker in some))
                    for report in reports:
                        check(report)
            except (RmError, WorkerDied) as error:
                await asyncio.gather(*(worker.unload(order.key) for _, worker in seats), return_exceptions=True)
                if isinstance(error, WorkerDied):
                    raise WorkerFailed(
                        f"A worker process died while it loaded {version_name(order.key)} ({error}). "
                        "Perhaps the version does not fit into memory."
                    ) from None
                raise
            self._orders[order.key] = (order, check, verify)
            for seat, worker in seats:
                # Unless it died just now: then its successor loads what was ordered.
                if seat.worker is worker:
                    seat.keys.add(order.key)
            return reports

    async def unload(self, key: VersionKey) -> None:
        """Frees a version in all workers, after the batches they were sent."""
        async with self._changes:
            self._orders.pop(key, None)
            for seat in self.seats:
                seat.keys.discard(key)
            workers = [seat.worker for seat in self.seats if seat.worker is not None]
            # A worker that dies meanwhile has freed it, too.
            await asyncio.gather(*(worker.unload(key) for worker in workers), return_exceptions=True)

    async def device_memory(self, device: str) -> int | None:
        """Bytes that are free on the workers' GPU, or on the fullest of their GPUs; None: unknown."""
        workers = [seat.worker for seat in self.seats if seat.worker is not None]
        answers = await asyncio.gather(*(_device_memory(worker, device) for worker in workers))
        return min((answer for answer in answers if answer is not None), default=None)

    async def _started(self, seat: Seat) -> Worker:
        worker = self._make_worker(seat.number)
        await worker.start(self._died)
        return worker

    def _died(self, worker: Worker, reason: str) -> None:
        for seat in self.seats:
            if seat.worker is worker:
                _log.error("A worker died: %s. Another one is started.", reason)
                seat.worker = None
                seat.keys.clear()
                self._listener.on_death(seat, reason)
                self._refills.spawn(self._refill(seat))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            for seat in self.seats:
                if seat.worker is not None and self._listener.is_stuck(seat):
                    _log.error("Worker %d has computed one batch for too long; it is ended.", seat.worker.pid)
                    seat.worker.kill()

    async def _refill(self, seat: Seat) -> None:
        pause_s = FIRST_PAUSE_S
        num_deaths: Counter[VersionKey] = Counter()
        while True:
            worker: Worker | None = None
            try:
                worker = await self._started(seat)
                async with self._changes:
                    lost = await self._reload(seat, worker, num_deaths)
                    if not worker.is_alive:
                        raise WorkerDied("it ended after its start")
                    seat.worker = worker
                    self._give_up(lost)
                break
            except Exception as error:
                # Of whatever kind: who gives up here leaves the seat empty for ever.
                seat.keys.clear()
                is_known = isinstance(error, (WorkerFailed, WorkerDied))
                _log.error("No new worker yet: %s", error, exc_info=None if is_known else error)
                if worker is not None and worker.is_alive:
                    await worker.stop()
                if self.num_ready == 0:
                    self.is_down = True
                    reason = error if is_known else "the server's log says why"
                    self._listener.on_outage(WorkerFailed(f"No worker process is up: {reason}.", retry_after_s=pause_s))
            except asyncio.CancelledError:
                if worker is not None:
                    await worker.stop()
                raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        self.is_down = False
        self._listener.on_ready()

    def _give_up(self, lost: dict[VersionKey, RmError]) -> None:
        for key, why in lost.items():
            if not any(key in other.keys for other in self.seats):
                self._orders.pop(key, None)
                self._listener.on_lost(key, why)

    async def _reload(self, seat: Seat, worker: Worker, num_deaths: Counter[VersionKey]) -> dict[VersionKey, RmError]:
        """Loads into a new worker what the others hold; returns what could not be loaded, and why.

        ``num_deaths``: of the workers before this one, by the version that they were loading; kept here.
        """
        lost: dict[VersionKey, RmError] = {}
        for key, (order, check, verify) in self._orders.items():
            try:
                if num_deaths[key] >= MAX_RELOAD_DEATHS:
                    raise WorkerFailed(
                        f"{num_deaths[key]} worker processes died one after the other while they loaded it. "
                        "Look for out-of-memory kills in the system's log."
                    )
                if (wrong := await asyncio.to_thread(attempt, f"Verifying {version_name(key)}", verify)) is not None:
                    raise wrong
                check(await worker.load(replace(order, gives_way=False)))  # all calls wait for it, or for fewer workers
                seat.keys.add(key)
            except WorkerDied:
                num_deaths[key] += 1
                raise
            except RmError as error:
                _log.error("%s@%d cannot be loaded into a new worker: %s", *key, error)
                lost[key] = error
        return lost


async def _device_memory(worker: Worker, device: str) -> int | None:
    try:
        return await worker.device_memory(device)
    except WorkerDied:
        return None


async def _all(*loads: Awaitable[LoadReport]) -> Sequence[LoadReport]:
    """Waits for all, whatever becomes of them; then raises the first failure, if any."""
    outcomes = await asyncio.gather(*loads, return_exceptions=True)
    reports = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        reports.append(outcome)
    return reports
