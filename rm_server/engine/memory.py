"""What the loaded versions take, and whether another one fits: estimated before its load, measured by it afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rm_server.backends.footprint import Footprint
from rm_server.backends.interface import ComputeSettings, SharedMemory
from rm_server.engine.host import LoadReport
from rm_server.errors import OutOfMemory
from rm_server.registry.manifest import Manifest
from rm_server.registry.records import VersionKey, version_name

MIB = 1 << 20

RESERVE_BYTES = 256 * MIB
"""Of the machine's memory, for everything else in the server: requests, queues, the cache."""

_RETRY_AFTER_S = 2.0
_MAX_NAMED = 8

Estimate = Callable[[Path, Manifest, ComputeSettings, int], Footprint]
"""As `backends.footprint.footprint`."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a loaded version takes, all workers together: its own, and what it shares with others (once)."""

    own_bytes: int
    shared: SharedMemory | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """A bound on memory. ``what`` it is, in words."""

    what: str
    needed_bytes: int
    free_bytes: int

    @property
    def missing_bytes(self) -> int:
        """Above 0: it does not fit."""
        return self.needed_bytes - self.free_bytes


class Memory:
    """The books: what is held, by whom. Lives on the event loop."""

    def __init__(
        self,
        limit_bytes: int,
        num_workers: int,
        estimate: Estimate,
        available: Callable[[], int | None],
        device_free: Callable[[], Awaitable[int | None]],
    ) -> None:
        """``limit_bytes`` 0: as much as there is. ``available``: of the machine. ``device_free``: of a GPU."""
        self._limit_bytes = limit_bytes
        self._num_workers = max(1, num_workers)
        self._estimate = estimate
        self._available = available
        self._device_free = device_free
        self._held: dict[VersionKey, Held] = {}
        # Added up at loads alone: whoever looks at the states of all versions asks once for each.
        self._by_version: dict[VersionKey, int] = {}
        # By folder (which names the digest) and precision: what a load has shown is better than any estimate.
        self._measured: dict[tuple[Path, str], LoadReport] = {}

    @property
    def held(self) -> Mapping[VersionKey, Held]:
        """By version, in the order of their loads."""
        return self._held

    def by_version(self) -> Mapping[VersionKey, int]:
        """Bytes of each version. What several share is counted with the one that was loaded first."""
        return self._by_version

    def came(self, key: VersionKey, folder: Path, precision: str, reports: Iterable[LoadReport]) -> None:
        """A version was loaded into all workers."""
        reports = list(reports)
        shared = [report.shared for report in reports if report.shared is not None]
        self._held[key] = Held(
            sum(report.memory_bytes for report in reports),
            replace(shared[0], num_bytes=sum(memory.num_bytes for memory in shared)) if shared else None,
        )
        self._by_version = _counted_once(self._held)
        self._measured[folder, precision] = reports[0]

    def went(self, key: VersionKey) -> None:
        """A version is out of memory."""
        self._held.pop(key, None)
        self._by_version = _counted_once(self._held)

    async def lacking(
        self, folder: Path, manifest: Manifest, settings: ComputeSettings, max_batch_tokens: int
    ) -> Room | None:
        """The bound that a load would go beyond the furthest; None: it fits. Raises what the estimate raises."""
        expected = await asyncio.to_thread(self._estimate, folder, manifest, settings, max_batch_tokens)
        if (known := self._measured.get((folder, settings.precision))) is not None:
            expected = replace(expected, own_bytes=known.memory_bytes, shared=known.shared)
        rooms = rooms_for(
            expected,
            self._num_workers,
            {held.shared.name for held in self._held.values() if held.shared is not None},
            limit=(self._limit_bytes, sum(self.by_version().values())) if self._limit_bytes else None,
            machine_bytes=self._available(),
            device=(settings.device, await self._device_free()),
        )
        worst = max(rooms, key=lambda room: room.missing_bytes, default=None)
        return worst if worst is not None and worst.missing_bytes > 0 else None

    def refusal(self, key: VersionKey, room: Room) -> OutOfMemory:
        """The error for a version that does not fit."""
        by_size = sorted(self.by_version().items(), key=lambda entry: -entry[1])
        held = ", ".join(f"{model}@{version} {in_mib(size)}" for (model, version), size in by_size[:_MAX_NAMED] if size)
        more = f" and {len(by_size) - _MAX_NAMED} more" if len(by_size) > _MAX_NAMED else ""
        return OutOfMemory(
            f"{version_name(key)} needs {in_mib(room.needed_bytes)} in {self._num_workers} "
            f"worker{'s' if self._num_workers > 1 else ''}, and {in_mib(max(0, room.free_bytes))} are free of "
            f"{room.what}. Loaded are: {held + more or 'nothing'}. Unload a version that is not needed, load this one "
            "in a narrower precision, or give the server fewer workers (engine.workers) or more memory.",
            retry_after_s=_RETRY_AFTER_S,
        )


def _counted_once(held_by: Mapping[VersionKey, Held]) -> dict[VersionKey, int]:
    counted: set[str] = set()
    found = {}
    for key, held in held_by.items():
        found[key] = held.own_bytes
        if held.shared is not None and held.shared.name not in counted:
            counted.add(held.shared.name)
            found[key] += held.shared.num_bytes
    return found


def rooms_for(
    expected: Footprint,
    num_workers: int,
    shared_already: Iterable[str],
    *,
    limit: tuple[int, int] | None,
    machine_bytes: int | None,
    device: tuple[str, int | None],
) -> list[Room]:
    """What a load needs, and has, of each bound. ``limit``: what versions may hold, and what they hold.

    Weights stay; what loading and computing take on top of them has to fit beside them, in every worker at once.
    """
    stays, passes = expected.own_bytes, expected.loading_bytes
    if expected.shared is not None:
        is_there = expected.shared.name in shared_already
        stays += 0 if is_there else expected.shared.num_bytes
        passes = 0 if is_there else passes
    if not stays:
        return []
    at_most = num_workers * (stays + max(passes, expected.working_bytes))
    rooms = []
    if limit is not None:
        rooms.append(Room(f"engine.memory_limit_mb ({in_mib(limit[0])})", num_workers * stays, limit[0] - limit[1]))
    if machine_bytes is not None:
        rooms.append(Room("the machine's memory (a reserve stays)", at_most, machine_bytes - RESERVE_BYTES))
    if device[1] is not None:
        rooms.append(Room(f"the memory of {device[0]}", at_most, device[1]))
    return rooms


def in_mib(num_bytes: int) -> str:
    """For people."""
    return f"{num_bytes / MIB:,.1f} MiB"
