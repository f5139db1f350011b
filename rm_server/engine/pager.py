"""Versions that nobody needs make room for others, and come back with the next request for them."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from rm_server.engine.engine import Engine
from rm_server.engine.following import Following
from rm_server.engine.memory import Room
from rm_server.engine.paging import Resident, choose_to_go
from rm_server.errors import DeadlineExceeded
from rm_server.registry.records import VersionKey

_log = logging.getLogger(__name__)


class PagingMetrics(Protocol):
    """What is counted here; see rm_server/metrics.py."""

    def version_paged(self, key: VersionKey, direction: str) -> None: ...


class Pager:
    """Pages versions out and in. Lives on the event loop."""

    def __init__(self, engine: Engine, following: Following, metrics: PagingMetrics) -> None:
        self._engine = engine
        self._following = following
        self._deployment = following.deployment
        self._metrics = metrics
        self._returning: dict[VersionKey, asyncio.Task[None]] = {}

    async def make_room(self, key: VersionKey, room: Room) -> None:
        """Pages out what has to go so that ``key`` fits; nothing where that would not be enough."""
        for gone in choose_to_go(self._residents(key), room.missing_bytes) or ():
            # Nobody holds the lock: else it could not go. So this waits for nobody, and no two wait for each other.
            async with self._following.lock(gone):
                await self._deployment.page_out(gone)
            self._metrics.version_paged(gone, "out")
            _log.info("%s@%d is paged out: %s@%d needs the memory.", *gone, *key)

    def is_away(self, key: VersionKey) -> bool:
        """Whether a request for the version has to wait until it is back."""
        return key in self._returning or self._deployment.state_of(key).state == "PAGED_OUT"

    async def bring_back(self, key: VersionKey, deadline: float | None) -> None:
        """Waits until a version that was paged out is loaded again. ``deadline`` on the event loop's clock.

        Raises DeadlineExceeded (the load goes on), and what a load raises: OutOfMemory where nothing can make room.
        """
        if not self.is_away(key):
            return
        if (task := self._returning.get(key)) is None:
            task = self._returning[key] = self._following.tasks.spawn(self._load(key))
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.shield(task)
        except TimeoutError:
            raise DeadlineExceeded(
                "{}@{} was out of memory and was not back before the deadline; it is being loaded.".format(*key)
            ) from None

    async def _load(self, key: VersionKey) -> None:
        try:
            async with self._following.lock(key):
                if self._deployment.state_of(key).state == "PAGED_OUT":
                    record = self._following.record(key)
                    await self._following.load(record, self._following.wanted_precision(key))
                    self._metrics.version_paged(key, "in")
        finally:
            del self._returning[key]

    def _residents(self, comes: VersionKey) -> list[Resident]:
        return [
            Resident(key, held.own_bytes, self._engine.last_used(key), self._may_go(key, comes), held.shared)
            for key, held in self._engine.memory.held.items()
        ]

    def _may_go(self, key: VersionKey, comes: VersionKey) -> bool:
        following = self._following
        parts = following.in_catalog.parts.get(comes, ())
        return (
            key != comes
            and key not in parts
            and self._deployment.is_loaded(key)
            and self._engine.is_idle(key)
            and not following.lock(key).locked()
            and following.need_of(key) is None
        )
