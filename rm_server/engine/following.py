"""Keeping this server as the catalog says: what should be loaded is loaded, what nobody wants is not."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Protocol

from rm_server.engine.change_log import change_lines
from rm_server.engine.changes import Changes
from rm_server.engine.deployment import Deployment, DeploymentMetrics
from rm_server.engine.engine import Engine
from rm_server.engine.lifecycle import SERVING, Policy, Step, next_steps, served_labels
from rm_server.engine.needs import needs_by_version
from rm_server.engine.tasks import Tasks
from rm_server.errors import CatalogUnavailable, RmError, VersionNotFound
from rm_server.registry.artifacts import ArtifactStore
from rm_server.registry.catalog import Catalog
from rm_server.registry.manifest import PRECISIONS, Precision
from rm_server.registry.records import Snapshot, VersionKey, VersionRecord, version_name
from rm_server.registry.runs import Look, look

Guard = Callable[[VersionKey], str | None]
"""Says who needs a version, in words for people; None: nobody."""

LATE_S = 10.0
"""A catalog that has not answered for so long is away: one that stands still breaks no connection."""

_NEEDS_PARTS = ("LOADING", "READY", "DRAINING")
"""States of a composite in which its parts must stay."""
_OUT_OF_MEMORY = ("REGISTERED", "FAILED")

_log = logging.getLogger(__name__)


class VersionMetrics(DeploymentMetrics, Protocol):
    """What is counted here; see rm_server/metrics."""

    def label_moved(self, model: str) -> None: ...
    def catalog_reachable(self, is_reachable: bool) -> None: ...
    def version_forgotten(self, key: VersionKey) -> None: ...


class Following:
    """What the catalog says, where this server stands, and the steps between. Lives on the event loop.

    While the catalog cannot be read, all stays as it was; `catalog_error` says so.
    """

    def __init__(
        self,
        catalog: Catalog,
        artifacts: ArtifactStore,
        engine: Engine,
        metrics: VersionMetrics,
        *,
        poll_s: float,
        policy: Policy,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``clock``: since 1970."""
        self._catalog = catalog
        self._metrics = metrics
        self._poll_s = poll_s
        self._policy: Policy = policy
        self._clock = clock
        self.deployment = Deployment(artifacts, engine, metrics, self._on_state, lambda: self.in_catalog.profiles)
        self.changes = Changes()
        self.tasks = Tasks()
        self.in_catalog = self.served = Snapshot(-1, {}, {}, frozenset())
        self.catalog_error: RmError | None = None
        """Why the catalog could not be read the last time."""
        self.forced_out: set[VersionKey] = set()
        """Unloaded although a label names them: not to be loaded again on the label's account."""
        self._looked = Look(-1, 0, {})
        self._needs: dict[VersionKey, str] = {}
        self._guards: list[Guard] = []
        self._after_look: list[Callable[[Look], Awaitable[None]]] = []
        self._steps: dict[VersionKey, asyncio.Task[None]] = {}
        self._locks: dict[VersionKey, asyncio.Lock] = {}

    # --- who needs what ---

    @property
    def wanted(self) -> frozenset[VersionKey]:
        """What should be loaded here: what the catalog says, what labels and splits name, what runs hold.

        And what those that are composites are made of.
        """
        needed = {key for key in self.deployment.states if self.need_of(key) is not None}
        wanted = self._wanted_alone() | needed
        return wanted | {part for key in wanted for part in self.in_catalog.parts.get(key, ())}

    def _wanted_alone(self) -> frozenset[VersionKey]:
        """What should be loaded whatever is loaded now."""
        return self.in_catalog.wanted | (self._named() - self.forced_out) | self._needs.keys()

    def _named(self) -> set[VersionKey]:
        return {(model, version) for (model, _), version in self.in_catalog.labels.items()}

    def _note_needs(self) -> None:
        self._needs = needs_by_version(self.in_catalog, self._looked.holders)

    def add_guard(self, guard: Guard) -> None:
        """Versions that ``guard`` knows a need for are neither unloaded nor deleted, whatever is asked."""
        self._guards.append(guard)

    def after_look(self, hook: Callable[[Look], Awaitable[None]]) -> None:
        """``hook`` is awaited with each `Look` at the catalog, also those before an unload or a deletion."""
        self._after_look.append(hook)

    def need_of(self, key: VersionKey) -> str | None:
        """Who needs a version, besides labels and the catalog's list of what shall be loaded."""
        found = next((need for guard in self._guards if (need := guard(key)) is not None), None)
        return found or self._needs.get(key) or self._need_of_composites(key)

    def _need_of_composites(self, key: VersionKey) -> str | None:
        for composite in self.in_catalog.composites_of(key):
            if self.deployment.state_of(composite).state in _NEEDS_PARTS or composite in self._wanted_alone():
                return f"the composite {version_name(composite)} is made of it. Unload that first."
        return None

    def _lacks_part(self, key: VersionKey) -> bool:
        """Whether it is a loaded composite that only a part can make READY again."""
        parts = self.in_catalog.parts.get(key, ())
        return self.deployment.is_loaded(key) and not all(map(self.deployment.is_loaded, parts))

    def labels_naming(self, key: VersionKey) -> list[str]:
        """The labels that name a version, in the catalog or still here."""
        labels = {*self.in_catalog.labels.items(), *self.served.labels.items()}
        return sorted({label for (model, label), version in labels if (model, version) == key})

    def record(self, key: VersionKey) -> VersionRecord:
        """The version in the catalog. Raises ModelNotFound, VersionNotFound."""
        if (record := self.in_catalog.versions.get(key)) is not None:
            return record
        model, version = key
        numbers = self.in_catalog.versions_of(model)
        if not numbers:
            raise self.in_catalog.unknown(model)
        raise VersionNotFound(f"{model} has no version {version}; it has {', '.join(map(str, numbers))}.")

    def wanted_precision(self, key: VersionKey) -> Precision | None:
        """The precision that a load asked for."""
        wanted = self.in_catalog.wanted_precision.get(key)
        return next((precision for precision in PRECISIONS if precision == wanted), None)

    def lock(self, key: VersionKey) -> asyncio.Lock:
        """One thing at a time for each version."""
        if key not in self.deployment.states:
            self.record(key)  # What never was gets no lock: callers can invent any number of versions.
        return self._locks.setdefault(key, asyncio.Lock())

    # --- loading ---

    async def load(self, record: VersionRecord, precision: Precision | None) -> None:
        """Loads a version, and before it what it is made of. The caller has the version's lock.

        Raises what `Deployment.load` raises.
        """
        parts = self.in_catalog.parts.get(record.key, ())
        await self.deployment.load(record, precision, partial(self._load_parts, record.key, parts) if parts else None)

    async def _load_parts(self, composite: VersionKey, parts: Iterable[VersionKey]) -> None:
        for part in parts:
            # From here on it is needed, and so it stays. It may be the caller who has the lock of a loaded one.
            if self.deployment.is_loaded(part):
                continue
            try:
                async with self.lock(part):  # composites' locks come before those of parts: no two wait for each other
                    await self.deployment.load(self.record(part), self.wanted_precision(part))
            except RmError as error:
                message = f"Its part {version_name(part)} could not be loaded: {error.message}"
                raise type(error)(message, retry_after_s=error.retry_after_s) from error

    # --- following ---

    async def start(self, each_look: Callable[[], None]) -> None:
        """Loads what should be loaded; returns when all of it is READY or FAILED. Then follows the catalog.

        ``each_look`` is called after each look that succeeded.
        """
        await self._look()
        while self._steps:
            await asyncio.wait(self._steps.values())
        self.deployment.has_callers = True
        self.tasks.spawn(self._follow(each_look))

    async def refresh(self) -> None:
        """Reads what the catalog says now, where it says something else: of many versions that takes a while."""
        if await asyncio.to_thread(self._catalog.revision) == self.in_catalog.revision:
            return
        snapshot = await asyncio.to_thread(self._catalog.snapshot)
        if snapshot.revision < self.in_catalog.revision:
            return  # A newer one overtook it.
        before, self.in_catalog = self.in_catalog, snapshot
        changed = {key for key, _ in before.versions.items() ^ snapshot.versions.items()}
        self._note_needs()
        self._serve()
        for key in changed:
            self._forget_if_gone(key)
        for model in sorted({model for model, _ in changed}):
            self.changes.publish("VERSIONS", model)

    async def refresh_holders(self) -> None:
        """Reads which versions the runs of all servers hold now."""
        looked = await asyncio.to_thread(look, self._catalog, self._clock())
        if (looked.revision, looked.run_revision) < (self._looked.revision, self._looked.run_revision):
            return  # A newer one overtook it: who has been given a version since would hold nothing.
        self._looked = looked
        self._note_needs()
        for hook in self._after_look:
            await hook(looked)

    def begin_steps(self) -> None:
        """Begins all that may begin now. What is paged out and wanted no longer is not kept in mind.

        Nor is what shadows by now: no request would bring that back, so that it is loaded as if it had never been here.
        What FAILED for a reason that has passed is tried again where it is wanted.
        """
        for key in self.deployment.may_work_now & self.wanted:
            if not self.deployment.is_busy(key) and not self._lacks_part(key):
                self.deployment.forget(key)
        for key in self.deployment.paged_out - (self.wanted - self.in_catalog.shadows.keys()):
            if not self.deployment.is_busy(key):
                self.deployment.forget(key)
        for step in self._next_steps():
            if step.key not in self._steps:
                self._steps[step.key] = self.tasks.spawn(self._do(step))

    def is_busy(self, key: VersionKey) -> bool:
        """Whether a step of the version is under way."""
        return key in self._steps

    def begin(self, key: VersionKey, work: Callable[[], Awaitable[None]]) -> None:
        """Begins something else of one's own with a version, as a step."""

        async def step() -> None:
            try:
                await work()
            finally:
                del self._steps[key]
            self.begin_steps()

        self._steps[key] = self.tasks.spawn(step())

    async def _follow(self, each_look: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._poll_s)
            silence = CatalogUnavailable(f"The catalog has not answered for {LATE_S:g} s.")
            late = loop.call_later(LATE_S, self._note_away, silence)
            try:
                await self._look()
                each_look()
            except CatalogUnavailable as error:
                self._note_away(error)
            except Exception:
                # Whatever it is: who gives up here never sees a change again.
                _log.exception("The catalog could not be followed; the next try comes in %g s.", self._poll_s)
            finally:
                late.cancel()

    def _note_away(self, error: CatalogUnavailable) -> None:
        if self.catalog_error is None:
            _log.warning("The catalog cannot be read; what is loaded goes on serving: %s", error)
        self.catalog_error = error
        self._metrics.catalog_reachable(False)

    async def _look(self) -> None:
        """Looks whether another process changed the catalog."""
        await self.refresh_holders()
        if self._looked.revision != self.in_catalog.revision:
            await self.refresh()
        if self.catalog_error is not None:
            _log.info("The catalog can be read again.")
            self.catalog_error = None
        self._metrics.catalog_reachable(True)
        self.begin_steps()

    def _next_steps(self) -> list[Step]:
        return next_steps(self.wanted, self.deployment.states, self._policy)

    async def _do(self, step: Step) -> None:
        key = step.key
        try:
            async with self.lock(key):
                # Somebody may have done it, or changed their mind, while we waited for the lock.
                if step not in self._next_steps():
                    return
                if step.what == "unload":
                    await self.deployment.unload(key)
                else:
                    await self.load(self.record(key), self.wanted_precision(key))
        except RmError as error:
            _log.warning("Could not %s %s@%s: %s", step.what, *key, error)
        finally:
            del self._steps[key]
        self.begin_steps()

    def _on_state(self, key: VersionKey) -> None:
        if not self.deployment.is_loaded(key):
            for composite in self.in_catalog.composites_of(key):
                if self.deployment.state_of(composite).state == "READY":
                    self.deployment.lacks_part(composite, key)
            self._forget_if_gone(key)
        self._serve()
        self.changes.publish("STATE", key[0])

    def _forget_if_gone(self, key: VersionKey) -> None:
        if key not in self.in_catalog.versions and self.deployment.state_of(key).state in _OUT_OF_MEMORY:
            self._metrics.version_forgotten(key)

    def _serve(self) -> None:
        before = self.served
        ready = {key for key, state in self.deployment.states.items() if state in SERVING}
        labels = served_labels(self.in_catalog.labels, before.labels, ready)
        # What was deleted through another server goes on serving here as long as a label still names it here.
        named = {(model, number) for (model, _), number in labels.items()} - self.in_catalog.versions.keys()
        kept = {key: before.versions[key] for key in named if key in before.versions}
        versions = {**self.in_catalog.versions, **kept} if kept else self.in_catalog.versions
        self.served = replace(self.in_catalog, labels=MappingProxyType(labels), versions=MappingProxyType(versions))
        if before.revision >= 0:  # what was so when the server started is no change
            for line in change_lines(before, self.served):
                _log.info("%s", line)
        for model in sorted({model for (model, _), _ in before.labels.items() ^ labels.items()}):
            self.changes.publish("LABELS", model)
