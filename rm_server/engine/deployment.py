"""Which versions this server has loaded, is loading, or could not load; how an artifact becomes a loaded version."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Set
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias

from rm_server.backends.device import device_kind
from rm_server.engine.engine import Engine
from rm_server.engine.giving_way import giving_way
from rm_server.engine.lifecycle import State
from rm_server.engine.loader import LoadTerms, MakeRoom, Trial, compute_settings
from rm_server.engine.memory import Room
from rm_server.errors import OutOfMemory, RmError, UnsupportedArtifact, VersionInUse, VersionNotLoaded, passes
from rm_server.registry.artifacts import ArtifactStore
from rm_server.registry.lora import read_base_name
from rm_server.registry.manifest import PRECISIONS, Manifest, Precision, read_manifest
from rm_server.registry.records import ServingProfile, VersionKey, VersionRecord, version_name

RETRY_S = 10.0
"""After a load that failed for a reason that passes, at least: each try reads all files."""

_log = logging.getLogger(__name__)


Profiles: TypeAlias = Mapping[tuple[VersionKey, str], ServingProfile]
"""By version and kind of device."""


class DeploymentMetrics(Protocol):
    """What is counted here; see rm_server/metrics."""

    def version_loaded(
        self, key: VersionKey, *, digest: str, precision: str, memory_bytes: int, load_seconds: float
    ) -> None: ...
    def load_failed(self, key: VersionKey, reason: str) -> None: ...
    def version_unloaded(self, key: VersionKey) -> None: ...
    def memory_changed(self, bytes_by_version: Mapping[VersionKey, int]) -> None: ...


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """Where a version is on this server. ``error`` is set when it FAILED; memory and precision when it is READY."""

    state: State
    error: RmError | None = None
    memory_bytes: int = 0
    precision: str = ""


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a version FAILED. ``passes_at`` on `time.monotonic`: the same load may work then; None: nobody knows."""

    error: RmError
    passes_at: float | None = None

    @classmethod
    def of(cls, error: RmError) -> _Failure:
        hint_s = error.retry_after_s
        return cls(error, None if hint_s is None else time.monotonic() + max(hint_s, RETRY_S))


class Deployment:
    """The states of versions on this server. One thing at a time for each version: the caller sees to that."""

    def __init__(
        self,
        artifacts: ArtifactStore,
        engine: Engine,
        metrics: DeploymentMetrics,
        on_change: Callable[[VersionKey], None],
        profiles: Callable[[], Profiles],
    ) -> None:
        """``on_change`` is told of every change of a version's state, after it. ``profiles``: those of the catalog."""
        self._artifacts = artifacts
        self._engine = engine
        self._metrics = metrics
        self._on_change = on_change
        self._profiles = profiles
        self._busy: dict[VersionKey, State] = {}
        self._failed: dict[VersionKey, _Failure] = {}
        self._paged_out: set[VersionKey] = set()
        self.has_callers = False
        """False while the server starts: a load then takes nobody's time."""
        self.make_room: MakeRoom | None = None
        """Pages out others where a version does not fit."""
        self.composite_trial: Trial | None = None
        """What a composite must pass before it serves, beside its parts."""
        engine.on_lost = self._lost

    def state_of(self, key: VersionKey) -> VersionStatus:
        """Where a version is on this server."""
        if (state := self._busy.get(key)) is not None:
            return VersionStatus(state)
        if (failure := self._failed.get(key)) is not None:
            return VersionStatus("FAILED", failure.error)
        if (loaded := self._engine.loaded.get(key)) is not None:
            return VersionStatus(
                "READY", memory_bytes=self._engine.memory.by_version()[key], precision=loaded.precision
            )
        return VersionStatus("PAGED_OUT" if key in self._paged_out else "REGISTERED")

    @property
    def states(self) -> Mapping[VersionKey, State]:
        """Of all versions that are not just REGISTERED."""
        keys = {*self._busy, *self._engine.loaded, *self._failed, *self._paged_out}
        return {key: self.state_of(key).state for key in keys}

    def is_loaded(self, key: VersionKey) -> bool:
        """Whether the version takes work."""
        return key in self._engine.loaded

    def is_busy(self, key: VersionKey) -> bool:
        """Whether it is being loaded or unloaded."""
        return key in self._busy

    def lacks_part(self, key: VersionKey, part: VersionKey) -> None:
        """A loaded composite FAILED, because something that it is made of is loaded no longer."""
        message = f"{version_name(key)} is made of {version_name(part)}, which is not loaded any more."
        why = self.state_of(part).error
        # What passes of the part, passes of the composite. And perhaps that is loaded again soon, whatever it was.
        kind = type(why) if passes(why) else VersionNotLoaded
        self._failed[key] = _Failure.of(kind(message, retry_after_s=RETRY_S))
        self._on_change(key)

    @property
    def may_work_now(self) -> Set[VersionKey]:
        """Those that FAILED for a reason that should have passed: a store or the workers were away."""
        now = time.monotonic()
        return {key for key, failed in self._failed.items() if failed.passes_at is not None and failed.passes_at <= now}

    @property
    def paged_out(self) -> Set[VersionKey]:
        """Those that come back with the next request for them."""
        return self._paged_out

    def forget(self, key: VersionKey) -> None:
        """FAILED and PAGED_OUT become REGISTERED."""
        was_paged_out = key in self._paged_out
        self._paged_out.discard(key)
        if self._failed.pop(key, None) is not None or was_paged_out:
            self._on_change(key)

    async def load(
        self, record: VersionRecord, precision: Precision | None, first: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Verifies the files and loads them; ``precision`` None: as it is; else the only one that the version has, what
        its serving profile for this kind of device says, or the server's own, in this order.

        ``first`` loads what the version needs beside it; what that raises, this raises.
        Raises VersionInUse when it is loaded in another precision, DigestMismatch, and what `Engine.load` raises; but
        for the first, it is FAILED then. One that was paged out and has no room now goes on being paged out.
        """
        key = record.key
        loaded = self._engine.loaded.get(key)
        fits = loaded is not None and (precision is None or loaded.precision in (precision, ""))
        if fits and key not in self._failed:
            return
        if loaded is not None and not fits:
            raise VersionInUse(
                f"{version_name(key)} is loaded in {loaded.precision}. Unload it first to load it in {precision}."
            )
        self._enter(key, "LOADING")
        started = time.perf_counter()
        try:
            if first is not None:
                await first()
            # Callers of other versions should not feel it; those of one that was paged out wait for it.
            gives_way = self.has_callers and bool(self._engine.loaded) and key not in self._paged_out
            verify = partial(_verify, self._artifacts, record)
            await (giving_way(verify) if gives_way else asyncio.to_thread(verify))
            folder = self._artifacts.path(record.digest)
            manifest, chosen = await self._chosen(record, precision)
            terms = LoadTerms(verify, self._trial_of(record), self.make_room, gives_way)
            loaded = await self._engine.load(key, folder, manifest, chosen, terms)
            if not self.is_loaded(key):  # it was lost in the event loop's turn between
                raise self._failed[key].error
            self._failed.pop(key, None)
            self._paged_out.discard(key)
            self._metrics.version_loaded(
                key,
                digest=record.digest,
                precision=loaded.precision,
                memory_bytes=self._engine.memory.by_version()[key],
                load_seconds=time.perf_counter() - started,
            )
            self._metrics.memory_changed(self._engine.memory.by_version())
            _log.info("%s is loaded: digest %s, %s", version_name(key), record.digest, loaded.precision or record.kind)
        except RmError as error:
            # What did not fit now may fit when it is asked for again.
            if not (key in self._paged_out and isinstance(error, OutOfMemory)):
                self._failed[key] = _Failure.of(error)
                self._paged_out.discard(key)
            self._metrics.load_failed(key, error.reason)
            _log.warning("%s is not loaded: %s", version_name(key), error)
            raise
        finally:
            self._leave(key)

    async def lacking(self, record: VersionRecord, precision: Precision | None) -> Room | None:
        """What a load would go beyond as things are; None: nothing, or its files are such that only it can say why."""
        folder, settings = self._artifacts.path(record.digest), self._engine.settings
        try:
            manifest, chosen = await self._chosen(record, precision)
            how = compute_settings(settings, chosen)
            return await self._engine.memory.lacking(folder, manifest, how, settings.max_batch_tokens)
        except RmError:
            return None

    async def _chosen(self, record: VersionRecord, precision: Precision | None) -> tuple[Manifest, Precision]:
        manifest = await asyncio.to_thread(read_manifest, self._artifacts.path(record.digest), record.golden_json)
        profile = await asyncio.to_thread(self._profile_of, record.key)
        return manifest, choose_precision(manifest, precision, profile, self._engine.settings.precision)

    async def unload(self, key: VersionKey) -> None:
        """Lets a loaded version finish its work and frees it."""
        self._enter(key, "DRAINING")
        try:
            await self._engine.unload(key)
            self._metrics.version_unloaded(key)
            self._metrics.memory_changed(self._engine.memory.by_version())
        finally:
            self._leave(key)

    async def page_out(self, key: VersionKey) -> None:
        """As `unload`; a request will bring it back."""
        self._paged_out.add(key)
        await self.unload(key)

    def _profile_of(self, key: VersionKey) -> ServingProfile | None:
        by_device = {device: profile for (known, device), profile in self._profiles().items() if known == key}
        return by_device.get(device_kind(self._engine.settings.device)) if by_device else None

    def _trial_of(self, record: VersionRecord) -> Trial | None:
        return self.composite_trial if record.kind == "composite" else None

    def _enter(self, key: VersionKey, state: State) -> None:
        self._busy[key] = state
        self._on_change(key)

    def _leave(self, key: VersionKey) -> None:
        del self._busy[key]
        self._on_change(key)

    def _lost(self, key: VersionKey, error: RmError) -> None:
        if self._busy.get(key) == "DRAINING":
            return  # it was on its way out, and is out now
        self._failed[key] = _Failure.of(error)
        self._metrics.version_unloaded(key)
        self._metrics.memory_changed(self._engine.memory.by_version())
        self._on_change(key)


def choose_precision(
    manifest: Manifest, asked: Precision | None, profile: ServingProfile | None, default: Precision
) -> Precision:
    """What a version is loaded in. Raises UnsupportedArtifact where another than its only precision is asked for."""
    if manifest.precision:
        if asked not in (None, manifest.precision):
            raise UnsupportedArtifact(
                f"The version computes in {manifest.precision} and in nothing else, and {asked} is asked for. "
                "Load it without a precision."
            )
        return manifest.precision
    profiled = next((known for known in PRECISIONS if profile is not None and known == profile.precision), None)
    return asked or profiled or default


def _verify(artifacts: ArtifactStore, record: VersionRecord) -> None:
    """The version's files, and those of an adapter's base. Raises ArtifactUnreadable, DigestMismatch."""
    artifacts.verify(record.digest)
    if record.kind == "lora":
        artifacts.verify(read_base_name(artifacts.path(record.digest)).digest)
