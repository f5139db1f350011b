"""From queue to workers and back: a batch goes out when a worker is free, scores and failures come back by item."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Protocol

import numpy as np

from rm_server.backends.items import Batch
from rm_server.config import EngineSettings
from rm_server.engine.again import Again
from rm_server.engine.background import BackgroundQueue
from rm_server.engine.batcher import batch_budget_tokens
from rm_server.engine.crew import Check, Crew, Seat, SentBatch, Verify
from rm_server.engine.fair_queue import FairQueue
from rm_server.engine.host import Computed, LoadOrder, LoadReport
from rm_server.engine.sharing import NOTHING, Sharing, count_once, room_for_others
from rm_server.engine.threads import threads_alone, threads_per_worker
from rm_server.engine.throughput import Throughputs
from rm_server.engine.work import ItemScore, Work, fail_all
from rm_server.engine.workers import Worker, WorkerDied
from rm_server.errors import DeadlineExceeded, NonFiniteScore, RmError, VersionNotLoaded, WorkerFailed
from rm_server.registry.records import VersionKey, version_name

LEAD_SHARE = 0.2
LEAD_S = 0.005
"""The next batch is sent so long before the present one should be done: a share of its time, at least so many s."""

CLOCK_S = 0.001
"""uvloop's clock and alarms move in whole milliseconds."""

STUCK_FACTOR = 20
"""A batch that takes so many times what it should, and longer than `EngineSettings.batch_timeout_s`, is never done."""


class PoolMetrics(Protocol):
    """What is counted here; see rm_server/metrics."""

    def queue_waited(self, key: VersionKey, seconds: float) -> None: ...
    def batch_computed(self, key: VersionKey, num_items: int, num_tokens: int, seconds: float) -> None: ...
    def queue_changed(self, num_items: int, num_tokens: int) -> None: ...
    def item_dropped(self, key: VersionKey, reason: str) -> None: ...
    def worker_restarted(self) -> None: ...


@dataclass(frozen=True, slots=True)
class QueueStats:
    """What waits for a turn."""

    items: int
    tokens: int


class Pool:
    """Keeps the workers of one device busy. Lives on the event loop; nothing is locked because nothing is shared.

    Nothing waits for a timer: a free worker gets at once whatever waits. A busy one gets a second batch into its pipe
    shortly before it is done with the first, and only a full one. Until then the queue is open to those who come
    later and are to go first; anything less than full goes on filling until the worker is free.
    """

    def __init__(
        self,
        settings: EngineSettings,
        make_worker: Callable[[int], Worker],
        metrics: PoolMetrics,
        on_lost: Callable[[VersionKey, RmError], None],
        on_workers: Callable[[], None] = lambda: None,
    ) -> None:
        """``on_workers`` is told when `is_down` may have changed."""
        self._settings = settings
        self._metrics = metrics
        self._on_lost = on_lost
        self._on_workers = on_workers
        self._throughputs = Throughputs()
        self._sharing: dict[VersionKey, Sharing] = {}
        self._queue: FairQueue[Work] = FairQueue(
            max_items=settings.max_queued_items,
            max_tokens=settings.max_queued_tokens,
            max_batch_tokens=settings.max_batch_tokens,
            max_yield_s=settings.max_yield_s,
            run_weights=settings.run_weights,
        )
        self._background: BackgroundQueue[Work] = BackgroundQueue(
            max_items=settings.max_background_items,
            max_tokens=settings.max_background_tokens,
            max_batch_tokens=settings.max_batch_tokens,
            crowded_share=settings.crowded_share,
        )
        self._again = Again()
        self._crew = Crew(make_worker, max(1, settings.workers), self)
        self._gain_alone = threads_alone(settings) / threads_per_worker(settings)
        self._is_dispatch_due = False

    async def start(self) -> None:
        """Starts the workers; raises WorkerFailed."""
        self._loop = asyncio.get_running_loop()
        await self._crew.start()

    async def stop(self, error: RmError) -> None:
        """Ends the workers; what waits or is under way fails with ``error``."""
        self.on_outage(error)
        for seat in self._crew.seats:
            fail_all((work for sent in seat.in_flight for work in sent.works), error)
            seat.in_flight.clear()
        await self._crew.stop()

    async def load(self, order: LoadOrder, check: Check, verify: Verify) -> list[LoadReport]:
        """Loads and checks a version in all workers, or in none; see `Crew.load`. Must not be cancelled."""
        reports = await self._crew.load(order, check, verify)
        self._sharing[order.key] = Sharing.of(reports)
        return reports

    async def unload(self, key: VersionKey) -> None:
        """Frees a version for which nothing is under way."""
        self._throughputs.forget(key)
        self._sharing.pop(key, None)
        await self._crew.unload(key)

    async def device_memory(self, device: str) -> int | None:
        """Bytes that are free on the workers' GPU; None: they compute on no GPU, or none of them is up.

        Where each has a GPU of its own, of all together, as if all were as full as the fullest.
        """
        free = None if device.split(":")[0] == "cpu" else await self._crew.device_memory(device)
        return free if free is None or not self._settings.has_gpu_each else free * len(self._crew.seats)

    @property
    def is_down(self) -> bool:
        """No worker is up, and the last attempt to start one failed: what is submitted is refused."""
        return self._crew.is_down

    @property
    def pids(self) -> list[int]:
        """The processes that compute."""
        return self._crew.pids

    @property
    def stats(self) -> QueueStats:
        """What waits now."""
        return QueueStats(self._queue.num_items, self._queue.num_tokens)

    def submit(
        self, key: VersionKey, works: Sequence[Work], *, run: str, priority: int, deadline: float | None
    ) -> None:
        """Takes all or nothing: raises QueueFull, or WorkerFailed while no worker can be started."""
        if self.is_down:
            raise WorkerFailed("No worker process is up; one is being started.", retry_after_s=1.0)
        count_once(works, self._sharing.get(key, NOTHING))
        now = self._loop.time()
        for work in self._queue.expire(now):
            self._drop_expired(work)
        self._queue.offer(key, run, works, priority=priority, deadline=deadline, now=now)
        for work in self._background.make_way(self._queue.filled_share):
            work.cancel()
        self._dispatch_soon()

    def check_room(self, key: VersionKey, run: str, num_items: int) -> None:
        """Raises QueueFull where so many items would be refused however short they are."""
        self._queue.check_room(key, run, num_items)

    @property
    def is_crowded(self) -> bool:
        """Whether callers have so much waiting that there is no background."""
        return self._background.is_crowded(self._queue.filled_share)

    def submit_background(self, key: VersionKey, works: Sequence[Work]) -> None:
        """Takes all or nothing: raises QueueFull, or WorkerFailed while no worker can be started.

        Each is computed when a worker has nothing else to do, or is cancelled when callers have too much waiting.
        """
        if self.is_down:
            raise WorkerFailed("No worker process is up; one is being started.", retry_after_s=1.0)
        count_once(works, self._sharing.get(key, NOTHING))
        self._background.offer(key, works, filled_share=self._queue.filled_share, now=self._loop.time())
        self._dispatch_soon()

    def drop_background(self, key: VersionKey | None = None) -> None:
        """Cancels what waits in the background, for one version or for all (None)."""
        for work in self._background.take_all(key):
            work.cancel()

    def expected_s(self, key: VersionKey, works: Sequence[Work]) -> float:
        """How long a forward pass over these should take, by what this version took so far."""
        return sum(work.num_tokens for work in works) / self._throughputs.tokens_per_s_of(key)

    def drop(self, work: Work) -> None:
        """Nobody wants this one any more, or it was answered already. If it still waits, it is never computed."""
        if work.is_waiting and work.is_background:
            self._background.drop(work)
        elif work.is_waiting:
            assert work.call is not None
            if any(future.cancelled() for future in work.futures):
                self._metrics.item_dropped(work.call.key, "cancelled")
            self._queue.drop(work)
            self._dispatch_soon()  # which says how much waits now

    # --- out ---

    def _dispatch_soon(self) -> None:
        # At the end of this turn of the loop, so that calls that came together share a batch.
        if not self._is_dispatch_due:
            self._is_dispatch_due = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._is_dispatch_due = False
        now = self._loop.time()
        for work in self._queue.expire(now):
            self._drop_expired(work)
        seats = [seat for seat in self._crew.seats if seat.worker is not None]
        num_idle = sum(not seat.in_flight for seat in seats)
        for depth in range(self._settings.batches_in_flight):
            for seat in seats:
                if len(seat.in_flight) == depth and (depth == 0 or self._wants_more(seat, now)):
                    sent = self._again.next(seat.keys, now, self._drop_expired) or self._next_batch(seat, num_idle)
                    num_idle -= depth == 0
                    if sent is not None:
                        self._send(seat, sent, now)
        self._dispatch_background(seats, now)
        self._metrics.queue_changed(self._queue.num_items, self._queue.num_tokens)

    def _dispatch_background(self, seats: Sequence[Seat], now: float) -> None:
        """One batch at a time, for a worker that has nothing else to do and nothing to wait for."""
        if not self._background.num_items or self._queue.num_items or self._again:
            return
        if any(sent.is_background for seat in seats for sent in seat.in_flight):
            return
        for seat in seats:
            if not seat.in_flight:
                taken = self._background.next_batch(
                    self._throughputs.tokens_per_s_of, self._settings.max_batch_items, seat.keys.__contains__
                )
                if taken is not None:
                    self._send(seat, SentBatch(*taken, is_background=True), now)
                    return

    def _wants_more(self, seat: Seat, now: float) -> bool:
        """Whether a worker that computes gets another batch; if it is too early for that, `_dispatch` comes back."""
        if not self._has_full_batch():
            return False
        if now >= seat.refill_at - CLOCK_S:
            return True
        if seat.wakes_at != seat.refill_at:
            seat.wakes_at = seat.refill_at
            self._loop.call_at(seat.refill_at, self._dispatch)
        return False

    def _has_full_batch(self) -> bool:
        return bool(self._again) or self._queue.has_full_batch(
            self._settings.max_batch_tokens, self._settings.max_batch_items
        )

    def _next_batch(self, seat: Seat, num_idle: int) -> SentBatch | None:
        budget = batch_budget_tokens(self._queue.num_tokens, num_idle, self._settings.max_batch_tokens)
        max_items = self._settings.max_batch_items
        taken = self._queue.next_batch(budget, max_items, seat.keys.__contains__)
        if taken is None:
            return None
        sent = SentBatch(*taken)
        if family := self._sharing.get(sent.key, NOTHING).mixes_with:
            alike = {key for key, sharing in self._sharing.items() if sharing.mixes_with == family}
            others = alike & seat.keys - {sent.key}
            room = room_for_others(sent.num_tokens, self._settings.max_batch_tokens)
            company = self._queue.take_along(others, room, max_items - len(sent.works))
            sent.works += company
            sent.is_mixed = bool(company)
        return sent

    def _send(self, seat: Seat, sent: SentBatch, now: float) -> None:
        assert seat.worker is not None
        sent.sent_at = time.perf_counter()
        sent.is_alone = not any(other.in_flight for other in self._crew.seats) and not self._queue.num_items
        seat.in_flight.append(sent)
        if len(seat.in_flight) == 1:
            self._expect(seat, now)
        versions = sent.by_version
        owners = [place for place, works in enumerate(versions.values()) for _ in works] if len(versions) > 1 else None
        batch = Batch.of([work.item for work in sent.works], owners)
        answer = seat.worker.compute(tuple(versions), batch, is_alone=sent.is_alone)
        answer.add_done_callback(partial(self._on_answer, seat, sent))

    def _expect(self, seat: Seat, now: float) -> None:
        """Says when the worker is to get its next batch, now that it begins with another one."""
        batch = seat.in_flight[0]
        seconds = batch.num_tokens / self._throughputs.tokens_per_s_of(batch.key)
        seat.began_at = now
        seat.refill_at = now + seconds - max(LEAD_S, LEAD_SHARE * seconds)

    # --- back ---

    def _on_answer(self, seat: Seat, sent: SentBatch, answer: asyncio.Future[Computed | RmError]) -> None:
        if answer.cancelled() or isinstance(answer.exception(), WorkerDied) or sent not in seat.in_flight:
            return  # on_death takes care of it, or has done so; or the pool is stopped.
        seat.in_flight.remove(sent)
        if seat.in_flight:
            self._expect(seat, self._loop.time())
        if self._queue.num_items or self._again or self._background.num_items:
            # The worker first: it waits for its next batch, and the callers do not mind a tenth of a millisecond.
            self._dispatch()
        outcome = answer.result()
        if isinstance(outcome, Computed):
            self.answer(sent, outcome)
        elif sent.is_background or len(sent.works) == 1:
            fail_all(sent.works, outcome)
        else:
            self._again.in_halves(sent)
            self._dispatch()

    def answer(self, sent: SentBatch, computed: Computed) -> None:
        """Gives each item what became of it."""
        versions = sent.by_version
        num_tokens = {key: sum(work.num_tokens for work in works) for key, works in versions.items()}
        # With its own threads alone, it would have taken about so long.
        worker_s = computed.seconds * (self._gain_alone if sent.is_alone else 1.0)
        # How fast the queue is worked off is said by what came from it, and not by what was done at once.
        is_for_all = not sent.is_background and sent.works[0].call is not None
        self._throughputs.add(num_tokens, worker_s, is_for_all=is_for_all)
        self._queue.tokens_per_s = self._throughputs.tokens_per_s * max(1, self._crew.num_ready)
        for key, works in versions.items():
            own_s = computed.seconds * num_tokens[key] / sent.num_tokens
            self._metrics.batch_computed(key, len(works), num_tokens[key], own_s)
        last_call = None
        parts = repeat(()) if computed.parts is None else map(tuple, computed.parts.tolist())
        for work, value, is_finite, of_item in zip(
            sent.works, computed.scores.tolist(), np.isfinite(computed.scores).tolist(), parts, strict=False
        ):
            key = sent.key if work.call is None else work.call.key
            queue_s = sent.sent_at - work.arrived
            if work.call is not last_call and not sent.is_background:
                last_call = work.call
                self._metrics.queue_waited(key, queue_s)
            if is_finite:
                work.succeed(ItemScore(value, queue_s, computed.seconds, of_item))
            else:
                work.fail(
                    NonFiniteScore(
                        f"{version_name(key)} gave {value} for this item. "
                        "Load the version in a wider precision, or look at the item."
                    )
                )

    def _drop_expired(self, work: Work) -> None:
        assert work.call is not None
        self._metrics.item_dropped(work.call.key, "deadline_exceeded")
        work.fail(DeadlineExceeded("The deadline passed while the item waited for its turn; it was not computed."))

    # --- what the crew tells ---

    def on_death(self, seat: Seat, reason: str) -> None:
        """What it had is computed again."""
        batches = list(seat.in_flight)
        seat.in_flight.clear()
        self._again.after_death(batches, reason)
        self._dispatch()

    def is_stuck(self, seat: Seat) -> bool:
        """Whether the batch that is being computed has taken many times what it should."""
        if not seat.in_flight or self._settings.workers == 0:
            return False
        expected_s = self.expected_s(seat.in_flight[0].key, seat.in_flight[0].works)
        return self._loop.time() - seat.began_at > max(self._settings.batch_timeout_s, STUCK_FACTOR * expected_s)

    def on_ready(self) -> None:
        """A new worker may take what waits."""
        self._metrics.worker_restarted()
        self._on_workers()
        self._dispatch()

    def on_outage(self, error: RmError) -> None:
        """Nobody will compute what waits."""
        self._again.fail(error)
        fail_all(self._queue.take_all(), error)
        fail_all(self._background.take_all(), error)
        self._on_workers()

    def on_lost(self, key: VersionKey, error: RmError) -> None:
        """Nobody can compute what waits for this version; where the cause passes, it may be sent again."""
        message = f"{version_name(key)} could not be loaded into a new worker: {error.message}"
        hint_s = error.retry_after_s
        reason = VersionNotLoaded(message) if hint_s is None else WorkerFailed(message, retry_after_s=hint_s)
        self._sharing.pop(key, None)
        self._again.fail_version(key, reason)
        fail_all(self._queue.take_all(key), reason)
        fail_all(self._background.take_all(key), reason)
        self._on_lost(key, error)
