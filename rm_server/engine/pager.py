"""Versions that nobody needs make room for others, and come back with the next request for them."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Iterable
from typing import Protocol

from rm_server.engine.engine import Engine
from rm_server.engine.following import Following
from rm_server.engine.memory import Room
from rm_server.engine.paging import Resident, choose_to_go, room_from
from rm_server.errors import DeadlineExceeded, OutOfMemory
from rm_server.registry.records import VersionKey, version_name

LONGEST_WAIT_S = 60.0
"""Of a request that has no deadline, for versions that are busy."""

LOOK_AGAIN_S = 0.1
"""Whether a version is still on its way out."""

_log = logging.getLogger(__name__)


class PagingMetrics(Protocol):
    """What is counted here; see rm_server/metrics."""

    def version_paged(self, key: VersionKey, direction: str) -> None: ...


class Pager:
    """Pages versions out and in. Lives on the event loop.

    A version that came back for a request stays for a while (`EngineSettings.min_stay_s`), whoever else is asked for:
    two that do not fit together take turns of that length and not with each request.
    """

    def __init__(self, engine: Engine, following: Following, metrics: PagingMetrics) -> None:
        self._engine = engine
        self._following = following
        self._deployment = following.deployment
        self._metrics = metrics
        self._returning: dict[VersionKey, asyncio.Task[None]] = {}
        # On `time.monotonic`, as is when a version was used last.
        self._stays_until: dict[VersionKey, float] = {}

    async def make_room(self, key: VersionKey, room: Room) -> bool:
        """Pages out one of those that have to go so that ``key`` fits; False: nothing would be enough.

        One, because others may take what was chosen while it goes: whoever loads looks again at what it lacks.
        Whoever loads a version by name is not made to wait for the end of others' stays.
        """
        is_for_request = any(key in (one, *self._parts_of(one)) for one in self._returning)
        now = time.monotonic() if is_for_request else math.inf
        going = choose_to_go(self._residents(key), room.missing_bytes, now)
        if not going:
            return False
        gone = going[0]
        # Nobody holds the lock: else it could not go. So this waits for nobody, and no two wait for each other.
        async with self._following.lock(gone):
            self._stays_until.pop(gone, None)
            await self._deployment.page_out(gone)
        self._metrics.version_paged(gone, "out")
        _log.info("%s@%d is paged out: %s@%d needs the memory.", *gone, *key)
        return True

    def is_away(self, key: VersionKey) -> bool:
        """Whether a request for the version has to wait until it is back."""
        is_out = key in self._deployment.paged_out and not self._deployment.is_loaded(key)
        return is_out or key in self._returning

    async def bring_back(self, key: VersionKey, deadline: float | None) -> None:
        """Waits until a version that was paged out is loaded again. ``deadline`` on the event loop's clock.

        Raises DeadlineExceeded (a load goes on), OutOfMemory where nothing can make room, or not before the deadline,
        and what a load raises.
        """
        while self.is_away(key):
            if key not in self._returning:
                await self._until_room(key, deadline)
                if not self.is_away(key):
                    return
            if (task := self._returning.get(key)) is None:
                task = self._returning[key] = self._following.tasks.spawn(self._load(key))
            try:
                async with asyncio.timeout_at(deadline):
                    await asyncio.shield(task)
            except TimeoutError:
                raise DeadlineExceeded(
                    f"{version_name(key)} was out of memory and was not back before the deadline; it is being loaded."
                ) from None
            except OutOfMemory:
                # Perhaps another one took the room meanwhile.
                room = await self._lacking(key)
                if room is None or room_from(self._residents(key), room.missing_bytes, time.monotonic()) is None:
                    raise

    async def _until_room(self, key: VersionKey, deadline: float | None) -> None:
        """Waits while only those stand in the way who are busy, or came back just now.

        Returns when a load can make room, or will say why it cannot.
        """
        loop = asyncio.get_running_loop()
        latest = loop.time() + LONGEST_WAIT_S if deadline is None else deadline
        while True:
            change = self._following.changes.subscribe()
            room = await self._lacking(key)
            if room is None or not self.is_away(key) or key in self._returning:
                return
            residents, now = self._residents(key), time.monotonic()
            moment = room_from(residents, room.missing_bytes, now)
            if moment is None or choose_to_go(residents, room.missing_bytes, now) is not None:
                return
            left_s = moment - now
            if left_s > 0 and loop.time() + left_s > latest:
                raise OutOfMemory(
                    f"{version_name(key)} is out of memory, and what could make room for it came back for other "
                    f"requests just now: a version stays for {self._engine.settings.min_stay_s:g} s "
                    "(engine.min_stay_s), so that two that do not fit together are not loaded in turns all the time. "
                    f"Try again in {left_s:.1f} s, or give the server more memory.",
                    retry_after_s=left_s,
                )
            if left_s > 0:
                await asyncio.sleep(left_s)
                continue
            busy = [one.key for one in residents if one.may_go and one.is_busy]
            try:
                async with asyncio.timeout_at(latest):
                    # Or whatever else came, or went.
                    await _first(anext(change), *(self._until_idle(other) for other in busy))
            except TimeoutError:
                names = ", ".join(map(version_name, busy))
                raise DeadlineExceeded(
                    f"{version_name(key)} was out of memory, and what could make room for it ({names}) was busy until "
                    "the deadline."
                ) from None

    async def _lacking(self, key: VersionKey) -> Room | None:
        return await self._deployment.lacking(self._following.record(key), self._following.wanted_precision(key))

    async def _until_idle(self, key: VersionKey) -> None:
        entry = self._engine.in_memory(key)
        if entry is None or entry.is_idle:
            # Locked, or on its way out. Nothing tells of the end of that.
            await asyncio.sleep(LOOK_AGAIN_S)
        else:
            await entry.until_idle()

    async def _load(self, key: VersionKey) -> None:
        try:
            async with self._following.lock(key):
                if self._deployment.state_of(key).state == "PAGED_OUT":
                    record = self._following.record(key)
                    await self._following.load(record, self._following.wanted_precision(key))
                    self._stays_until[key] = time.monotonic() + self._engine.settings.min_stay_s
                    self._metrics.version_paged(key, "in")
        finally:
            del self._returning[key]

    def _residents(self, comes: VersionKey) -> list[Resident]:
        residents = []
        for key, held in self._engine.memory.held.items():
            entry = self._engine.in_memory(key)
            assert entry is not None
            residents.append(
                Resident(
                    key,
                    held.own_bytes,
                    entry.last_used,
                    self._may_go(key, comes),
                    held.shared,
                    # On trial before it serves, on its way out, or held by a request.
                    is_busy=not (self._deployment.is_loaded(key) and entry.is_idle) or self._is_locked(key),
                    stays_until=self._stays_until.get(key, 0.0),
                )
            )
        return residents

    def _may_go(self, key: VersionKey, comes: VersionKey) -> bool:
        return key not in (comes, *self._parts_of(comes)) and self._following.need_of(key) is None

    def _parts_of(self, key: VersionKey) -> Iterable[VersionKey]:
        return self._following.in_catalog.parts.get(key, ())

    def _is_locked(self, key: VersionKey) -> bool:
        return self._following.lock(key).locked()


async def _first(*waits: Awaitable[object]) -> None:
    """Returns when one of them is done."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
