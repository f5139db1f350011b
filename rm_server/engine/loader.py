"""From a folder to a version that computes: encoder, trial items, room in memory, all workers, checks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rm_server.backends.interface import ComputeSettings
from rm_server.backends.items import Batch, EncodedItem
from rm_server.config import EngineSettings
from rm_server.engine.batcher import in_batches
from rm_server.engine.checks import check, probes_of
from rm_server.engine.crew import Verify
from rm_server.engine.host import LoadOrder, LoadReport, attempt, imported
from rm_server.engine.loaded import LoadedVersion
from rm_server.engine.memory import Memory, Room
from rm_server.engine.pool import Pool
from rm_server.engine.threads import threads_alone, threads_per_worker
from rm_server.errors import RmError
from rm_server.registry.manifest import Manifest, Precision
from rm_server.registry.records import VersionKey, version_name

MakeRoom = Callable[[VersionKey, Room], Awaitable[bool]]
"""Unloads another version on the way to room for one; False: there is no way. What is lacking is looked at again."""

Trial = Callable[[LoadedVersion], Awaitable[None]]
"""Raises what is wrong with a version, judging by what it does beside the others."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LoadTerms:
    """What a load has to mind beside the files.

    ``verify`` is asked again before a worker that takes the place of a dead one loads the same files. ``trial`` may
    encode and submit items before any request may use the version. ``make_room`` is asked to unload others where the
    version does not fit; without it, or where it cannot, the version is refused with the figures. ``gives_way``: see
    `LoadOrder`.
    """

    verify: Verify = lambda: None
    trial: Trial | None = None
    make_room: MakeRoom | None = None
    gives_way: bool = False


ON_ITS_OWN = LoadTerms()
"""Nothing to mind."""


class Loader:
    """Makes loaded versions, one at a time: the caller sees to that."""

    def __init__(
        self, settings: EngineSettings, pool: Pool, memory: Memory, *, load_encoder: str, load_weightless: str
    ) -> None:
        """The functions that load, as ``module:function``."""
        self._settings = settings
        self._pool = pool
        self._memory = memory
        self._load_encoder = load_encoder
        self._load_weightless = load_weightless
        self._num_loads = 0

    async def load(
        self,
        key: VersionKey,
        folder: Path,
        manifest: Manifest,
        precision: Precision,
        terms: LoadTerms,
    ) -> LoadedVersion:
        """Loads into all workers, or into none. Raises BrokenVersion's members, OutOfMemory, WorkerFailed."""
        doing = f"Loading {version_name(key)}"
        settings = compute_settings(self._settings, precision)
        await self._check_room(key, folder, manifest, settings, terms.make_room)
        encoder = await in_thread(doing, lambda: imported(self._load_encoder)(folder, manifest))
        probes = await in_thread(doing, lambda: probes_of(encoder, manifest))
        weightless = await in_thread(doing, lambda: imported(self._load_weightless)(folder, manifest))

        def check_report(report: LoadReport) -> None:
            check(key, manifest, report.precision, probes, report.probe_scores)

        order = LoadOrder(key, folder, manifest, settings, self._batches(probes.items), terms.gives_way)
        reports = await self._pool.load(order, check_report, terms.verify)
        self._memory.came(key, folder, precision, reports)
        self._num_loads += 1
        return LoadedVersion(
            key=key,
            manifest=manifest,
            precision=reports[0].precision,
            encoder=encoder,
            number=self._num_loads,
            weightless=weightless,
        )

    async def _check_room(
        self, key: VersionKey, folder: Path, manifest: Manifest, settings: ComputeSettings, make_room: MakeRoom | None
    ) -> None:
        """Raises OutOfMemory, with the figures, for what would not fit."""
        max_tokens = self._settings.max_batch_tokens
        room = await self._memory.lacking(folder, manifest, settings, max_tokens)
        while room is not None and make_room is not None and await make_room(key, room):
            room = await self._memory.lacking(folder, manifest, settings, max_tokens)
        if room is not None:
            raise self._memory.refusal(key, room)

    def _batches(self, items: Sequence[EncodedItem]) -> tuple[Batch, ...]:
        settings = self._settings
        return tuple(Batch.of(part) for part in in_batches(items, settings.max_batch_tokens, settings.max_batch_items))


def compute_settings(settings: EngineSettings, precision: Precision) -> ComputeSettings:
    """How a worker computes."""
    return ComputeSettings(
        device=settings.device,
        precision=precision,
        threads=threads_per_worker(settings),
        threads_alone=threads_alone(settings),
        prepack=settings.prepack,
        deterministic=settings.deterministic,
    )


async def in_thread(doing: str, function: Callable[[], T]) -> T:
    """Off the event loop. Raises the function's failure as an error of ours."""
    outcome = await asyncio.to_thread(attempt, doing, function)
    if isinstance(outcome, RmError):
        raise outcome
    return outcome
