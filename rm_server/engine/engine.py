"""The engine: loads versions, holds them for requests, and turns items into scores."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from rm_server.backends.footprint import footprint
from rm_server.backends.items import Batch, EncodedItem
from rm_server.config import EngineSettings
from rm_server.engine.crew import SentBatch
from rm_server.engine.encoding import Encoding, Pair
from rm_server.engine.host import Computed, attempt, computed
from rm_server.engine.loaded import Entry, Hold, LoadedVersion
from rm_server.engine.loader import ON_ITS_OWN, Loader, LoadTerms
from rm_server.engine.machine import available_bytes
from rm_server.engine.memory import Estimate, Memory
from rm_server.engine.pool import Pool, PoolMetrics, QueueStats
from rm_server.engine.result_cache import ResultCache, cache_key
from rm_server.engine.tasks import Tasks
from rm_server.engine.threads import threads_per_worker
from rm_server.engine.under_way import UnderWay
from rm_server.engine.work import ItemScore, Work
from rm_server.engine.workers import ProcessWorker, ThreadWorker, Worker
from rm_server.errors import Draining, RmError, VersionInUse, VersionNotLoaded, WorkerFailed
from rm_server.registry.manifest import Manifest, Precision, TruncationRule
from rm_server.registry.records import VersionKey, version_name

LOAD_BACKEND = "rm_server.backends.loading:load_backend"
LOAD_ENCODER = "rm_server.backends.loading:load_encoder"
LOAD_WEIGHTLESS = "rm_server.backends.loading:load_weightless"

AT_ONCE_S = 0.0005
"""Work of at most so long, for a version without weights, is done on the event loop: a worker is two hops away."""


class EngineMetrics(PoolMetrics, Protocol):
    """What is counted here; see rm_server/metrics."""

    def cache_asked(self, key: VersionKey, num_hits: int, num_misses: int) -> None: ...


class Engine:
    """Loaded versions, kept busy and fair. All methods belong to the event loop on which it was started."""

    def __init__(
        self,
        settings: EngineSettings,
        metrics: EngineMetrics,
        *,
        load_backend: str = LOAD_BACKEND,
        load_encoder: str = LOAD_ENCODER,
        load_weightless: str = LOAD_WEIGHTLESS,
        estimate: Estimate = footprint,
        available: Callable[[], int | None] = available_bytes,
    ) -> None:
        """The functions that load, as ``module:function``; the backend's is called in the workers.

        ``estimate``: what a version will take. ``available``: what the machine has.
        """
        self.settings = settings
        self._metrics = metrics
        self._load_backend = load_backend
        self.on_workers: Callable[[], None] = lambda: None
        """Told when `is_down` may have changed."""
        self._pool = Pool(settings, self._make_worker, metrics, self._lost, self._workers_changed)
        self.memory = Memory(
            settings.memory_limit_bytes,
            settings.workers,
            estimate,
            available,
            partial(self._pool.device_memory, settings.device),
        )
        """What the loaded versions take."""
        self._loader = Loader(
            settings, self._pool, self.memory, load_encoder=load_encoder, load_weightless=load_weightless
        )
        self._encoding = Encoding(settings.encode_threads)
        self._cache: ResultCache[ItemScore] = ResultCache(settings.cache_items)
        self._under_way = UnderWay()
        self._entries: dict[VersionKey, Entry] = {}
        # One load at a time: libraries change what belongs to the whole process while they build a model.
        self._load_turn = asyncio.Lock()
        self._loaded: dict[VersionKey, LoadedVersion] = {}
        self._tasks = Tasks()
        self._is_draining = False
        self._is_stopped = False
        self.num_scored_items = 0
        """Items answered with a score since the start."""
        self.on_lost: Callable[[VersionKey, RmError], None] = lambda key, error: None
        """Told of a version that no worker could load again after a worker had died; it is loaded no longer."""

    @property
    def loaded(self) -> Mapping[VersionKey, LoadedVersion]:
        """The versions that take work; those that drain are not among them."""
        return MappingProxyType(self._loaded)

    @property
    def threads_per_worker(self) -> int:
        """As set, or the cores divided between the workers."""
        return threads_per_worker(self.settings)

    @property
    def queue_stats(self) -> QueueStats:
        """What waits for a turn."""
        return self._pool.stats

    @property
    def is_down(self) -> bool:
        """No worker is up, and the last attempt to start one failed."""
        return self._pool.is_down

    @property
    def worker_pids(self) -> list[int]:
        """The processes that compute now; this one where it computes itself."""
        return self._pool.pids

    async def start(self) -> None:
        """Starts the workers. Raises WorkerFailed."""
        self._loop = asyncio.get_running_loop()
        await self._pool.start()

    async def stop(self, drain_s: float) -> None:
        """Lets requests under way finish for up to ``drain_s``, fails the rest with Draining, ends the workers."""
        self._is_draining = True
        self._pool.drop_background()
        try:
            async with asyncio.timeout(drain_s):
                for entry in list(self._entries.values()):
                    await entry.until_idle()
        except TimeoutError:
            pass
        self._is_stopped = True
        await self._pool.stop(Draining("The server stopped before this item was computed; go to another one."))
        await self._tasks.cancel()
        self._encoding.close()

    # --- versions ---

    async def load(
        self,
        key: VersionKey,
        folder: Path,
        manifest: Manifest,
        precision: Precision,
        terms: LoadTerms = ON_ITS_OWN,
    ) -> LoadedVersion:
        """Loads beside what serves, warms up and checks. Works, or changes nothing.

        A version that is loaded in this precision already is left as it is. Goes on when the caller is cancelled.

        Raises BrokenVersion's members, OutOfMemory, WorkerFailed, Draining; VersionInUse where it is being unloaded, or
        is loaded in another precision.
        """
        return await self._tasks.to_the_end(self._load(key, folder, manifest, precision, terms))

    async def unload(self, key: VersionKey) -> None:
        """Takes no new requests, finishes those under way, frees the memory. Goes on when the caller is cancelled.

        Raises VersionNotLoaded.
        """
        entry = self._entry(key)
        if entry.unloading is None:
            self._loaded.pop(key, None)
            self._pool.drop_background(key)
            entry.unloading = self._tasks.spawn(self._unload(entry))
        await asyncio.shield(entry.unloading)

    def use(self, key: VersionKey) -> Hold:
        """Holds a version while a request is under way: ``with engine.use(key) as version``. An unload waits for it.

        Raises VersionNotLoaded; Draining once the server stops.
        """
        if self._is_draining:
            raise Draining("The server is shutting down; go to another one.")
        if key not in self._loaded:
            raise _not_loaded(key)
        return Hold(self._entries[key])

    def in_memory(self, key: VersionKey) -> Entry | None:
        """A version with those who hold it, also while it is unloaded; None: it is not in memory."""
        return self._entries.get(key)

    # --- items ---

    def check_room(self, key: VersionKey, run: str, num_items: int) -> None:
        """Asked before items are encoded: raises QueueFull where `submit` would, however short they are."""
        if self._entry(key).version.weightless is None:  # the others need not queue
            self._pool.check_room(key, run, num_items)

    async def encode(
        self,
        key: VersionKey,
        pairs: Sequence[Pair],
        truncation: TruncationRule | None = None,
        *,
        run: str = "",
        deadline: float | None = None,
    ) -> list[EncodedItem | RmError]:
        """Turns pairs of prompt and completion into items, or into what is wrong with them; off the event loop.

        Runs take turns. ``deadline`` on the event loop's clock. Raises DeadlineExceeded.
        """
        encoder = self._entry(key).version.encoder
        return await self._encoding.encode(encoder, pairs, truncation, run=run, deadline=deadline)

    def submit(
        self,
        key: VersionKey,
        items: Sequence[EncodedItem],
        *,
        run: str = "",
        priority: int = 0,
        deadline: float | None = None,
        use_cache: bool = True,
    ) -> list[asyncio.Future[ItemScore]]:
        """Queues items; one future each, in order. All are taken or none. ``deadline`` on the event loop's clock.

        Raises QueueFull, VersionNotLoaded, WorkerFailed or Draining at once. A future fails by itself with
        NonFiniteScore, DeadlineExceeded, OutOfMemory, WorkerFailed and the like. A cancelled one is dropped unless it
        is being computed. ``use_cache``: the item may be answered by a former or a running computation of the same.
        """
        if self._is_stopped:
            raise Draining("The server has stopped; go to another one.")
        entry = self._entry(key)
        arrived = time.perf_counter()
        futures: list[asyncio.Future[ItemScore]] = []
        new: list[Work] = []
        new_by_key: dict[bytes, Work] = {}
        waiting: list[tuple[Work, asyncio.Future[ItemScore]]] = []
        for item in items:
            future: asyncio.Future[ItemScore] = self._loop.create_future()
            futures.append(future)
            item_key = cache_key(entry.version.number, item) if use_cache else None
            work = None
            if item_key is not None:
                if (known := self._cache.get(item_key)) is not None:
                    future.set_result(known)
                    continue
                work = new_by_key.get(item_key) or self._under_way.joinable(item_key, run, priority, deadline)
            if work is None:
                work = Work(item, arrived, item_key)
                new.append(work)
                if item_key is not None:
                    new_by_key[item_key] = work
            waiting.append((work, future))
        is_at_once = entry.version.weightless is not None and self._pool.expected_s(key, new) <= AT_ONCE_S
        if new and not is_at_once:
            self._pool.submit(key, new, run=run, priority=priority, deadline=deadline)
        if use_cache:
            self._metrics.cache_asked(key, len(items) - len(new), len(new))
            for work in new:
                self._under_way.add(work)
            self.num_scored_items += len(items) - len(waiting)
        for work, future in waiting:
            work.futures.append(future)
            future.add_done_callback(partial(self._on_done, entry, work))
        entry.num_pending += len(waiting)
        if new and is_at_once:
            self._compute_at_once(entry.version, new)
        return futures

    @property
    def is_crowded(self) -> bool:
        """Whether callers have so much waiting that nothing is taken for the background."""
        return self._pool.is_crowded

    def submit_background(self, key: VersionKey, items: Sequence[EncodedItem]) -> list[asyncio.Future[ItemScore]]:
        """As `submit`, for work that must not delay anybody's: computed when a worker has nothing else to do.

        The result cache is neither asked nor filled. A future is cancelled when callers have too much waiting, or the
        version is unloaded. Raises QueueFull, VersionNotLoaded, WorkerFailed or Draining at once.
        """
        if self._is_draining:
            raise Draining("The server is shutting down.")
        if key not in self._loaded:
            raise _not_loaded(key)
        arrived = time.perf_counter()
        works = [Work(item, arrived, None, is_background=True) for item in items]
        self._pool.submit_background(key, works)
        entry = self._entries[key]
        entry.num_pending += len(works)
        futures = []
        for work in works:
            future: asyncio.Future[ItemScore] = self._loop.create_future()
            future.add_done_callback(partial(self._on_done, entry, work))
            work.futures.append(future)
            futures.append(future)
        return futures

    def _compute_at_once(self, version: LoadedVersion, works: list[Work]) -> None:
        backend, key = version.weightless, version.key
        assert backend is not None
        sent = SentBatch(key, works, sent_at=time.perf_counter())
        batch = Batch.of([work.item for work in works])
        outcome = attempt(f"Scoring with {version_name(key)}", lambda: computed(backend, key, batch))
        if isinstance(outcome, Computed):
            self._pool.answer(sent, outcome)
        elif len(works) == 1:
            works[0].fail(outcome)
        else:  # the guilty one alone
            for work in works:
                self._compute_at_once(version, [work])

    def _on_done(self, entry: Entry, work: Work, future: asyncio.Future[ItemScore]) -> None:
        if not future.cancelled() and future.exception() is None:
            self.num_scored_items += not work.is_background
            if work.cache_key is not None:
                score = future.result()
                self._cache.put(work.cache_key, ItemScore(score.value, 0.0, 0.0, score.parts))
                for same in self._under_way.same_as(work.cache_key):
                    same.succeed(score)
        if not work.is_wanted:
            self._pool.drop(work)
            self._under_way.remove(work)
        entry.num_pending -= 1
        entry.tell_if_idle()

    # --- inside ---

    async def _load(
        self, key: VersionKey, folder: Path, manifest: Manifest, precision: Precision, terms: LoadTerms
    ) -> LoadedVersion:
        async with self._load_turn:
            if self._is_draining:
                raise Draining("The server is shutting down and loads nothing.")
            if (version := self._loaded.get(key)) is not None and version.precision in (precision, ""):
                return version
            if key in self._entries:
                raise VersionInUse(
                    f"{version_name(key)} is being unloaded, or is loaded in another precision than {precision}; "
                    "unload it first."
                )
            version = await self._loader.load(key, folder, manifest, precision, terms)
            entry = self._entries[key] = Entry(version)
            if terms.trial is not None:
                try:
                    await terms.trial(version)
                except BaseException:
                    await self._unload(entry)
                    raise
            if self._entries.get(key) is not entry:
                raise WorkerFailed(
                    f"{version_name(key)} was lost while it was tried: no worker could load it again. Look at the "
                    "server's log, then load it again."
                )
            self._loaded[key] = version
            return version

    async def _unload(self, entry: Entry) -> None:
        await entry.until_idle()
        await self._pool.unload(entry.version.key)
        self.memory.went(entry.version.key)
        self._entries.pop(entry.version.key, None)

    def _workers_changed(self) -> None:
        self.on_workers()  # whoever it is by now

    def _lost(self, key: VersionKey, error: RmError) -> None:
        self._loaded.pop(key, None)
        self._entries.pop(key, None)
        self.memory.went(key)
        self.on_lost(key, error)

    def _entry(self, key: VersionKey) -> Entry:
        if (entry := self._entries.get(key)) is None:
            raise _not_loaded(key)
        return entry

    def _make_worker(self, number: int) -> Worker:
        if self.settings.workers == 0:
            return ThreadWorker(self._load_backend)
        gpu = number if self.settings.has_gpu_each else None
        return ProcessWorker(self._load_backend, self.threads_per_worker, gpu)


def _not_loaded(key: VersionKey) -> VersionNotLoaded:
    return VersionNotLoaded(f"{version_name(key)} is not loaded on this server; load it first (`rm-server load`).")
