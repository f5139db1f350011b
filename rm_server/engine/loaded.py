"""A loaded version, and those who hold it: it stays until nobody uses it and none of its items is under way."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from types import TracebackType

from rm_server.backends.interface import Backend, Encoder
from rm_server.registry.manifest import Manifest
from rm_server.registry.records import VersionKey


@dataclass(frozen=True, slots=True)
class LoadedVersion:
    """A version that serves. ``precision`` empty: it has no weights.

    ``number`` counts the loads of this engine, so that no two loads are ever mistaken for one another.
    ``weightless``: the backend, once more, of a version that has no weights.
    """

    key: VersionKey
    manifest: Manifest
    precision: str
    encoder: Encoder
    number: int
    weightless: Backend | None = None


class Entry:
    """A version with the requests that hold it and the items that are under way."""

    def __init__(self, version: LoadedVersion) -> None:
        self.version = version
        self.num_users = 0
        self.num_pending = 0
        self.last_used = time.monotonic()
        self.unloading: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()

    @property
    def is_idle(self) -> bool:
        """Whether no request holds the version and no item is under way."""
        return not (self.num_users or self.num_pending)

    def tell_if_idle(self) -> None:
        """To be called whenever one of the numbers went down."""
        if self.is_idle:
            self._idle.set()

    async def until_idle(self) -> None:
        """Waits until no request holds the version and no item is under way."""
        while not self.is_idle:
            self._idle.clear()
            await self._idle.wait()


class Hold:
    """A request's hold on a loaded version."""

    __slots__ = ("_entry",)

    def __init__(self, entry: Entry) -> None:
        self._entry = entry

    def __enter__(self) -> LoadedVersion:
        self._entry.num_users += 1
        return self._entry.version

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entry.num_users -= 1
        self._entry.last_used = time.monotonic()
        self._entry.tell_if_idle()
