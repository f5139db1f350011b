"""The operator's actions on versions and labels, and keeping this server as the catalog says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from rm_server.engine.changes import Changes, Subscription
from rm_server.engine.deployment import Deployment, DeploymentMetrics, VersionStatus
from rm_server.engine.engine import Engine
from rm_server.engine.lifecycle import Policy, Step, next_steps, served_labels
from rm_server.engine.tasks import Tasks
from rm_server.errors import (
    CatalogUnavailable,
    ModelNotFound,
    NotFound,
    RmError,
    VersionInUse,
    VersionNotFound,
    VersionNotLoaded,
)
from rm_server.registry.artifacts import ArtifactStore
from rm_server.registry.catalog import Catalog
from rm_server.registry.home import add_version, sweep_artifacts
from rm_server.registry.manifest import PRECISIONS, Precision
from rm_server.registry.names import check_label
from rm_server.registry.records import Snapshot, VersionKey, VersionRecord

Guard = Callable[[VersionKey], str | None]
"""Says who needs a version, in words for people; None: nobody."""

_log = logging.getLogger(__name__)


class VersionMetrics(DeploymentMetrics, Protocol):
    """What is counted here; see rm_server/metrics.py."""

    def label_moved(self, model: str) -> None: ...
    def catalog_reachable(self, is_reachable: bool) -> None: ...


class VersionManager:
    """Loads, unloads, labels and registers, one thing at a time for each version, and follows the catalog.

    Lives on the event loop; catalog and disk are used in threads. What has been begun goes on when the caller is
    cancelled. Everything may raise CatalogUnavailable.
    """

    def __init__(
        self,
        catalog: Catalog,
        artifacts: ArtifactStore,
        engine: Engine,
        metrics: VersionMetrics,
        *,
        poll_s: float = 1.0,
        policy: Policy = "availability",
    ) -> None:
        self._catalog = catalog
        self._artifacts = artifacts
        self._metrics = metrics
        self._poll_s = poll_s
        self._policy: Policy = policy
        self._deployment = Deployment(artifacts, engine, metrics, self._on_state)
        self._guards: list[Guard] = []
        self._changes = Changes()
        self._tasks = Tasks()
        self._steps: dict[VersionKey, asyncio.Task[None]] = {}
        self._locks: dict[VersionKey, asyncio.Lock] = {}
        self._in_catalog = self._served = Snapshot(-1, {}, {}, frozenset())
        # Unloaded although a label names them: not to be loaded again on the label's account.
        self._forced_out: set[VersionKey] = set()
        # To be unloaded as soon as nothing needs them, and who wanted that.
        self._retiring: dict[VersionKey, str] = {}

    # --- looking ---

    @property
    def snapshot(self) -> Snapshot:
        """What requests are routed by: the catalog, except that a label follows only when its version is ready."""
        return self._served

    @property
    def wanted(self) -> frozenset[VersionKey]:
        """What should be loaded here: what the catalog says, what labels name, what runs hold."""
        catalog = self._in_catalog
        named = {(model, version) for (model, _), version in catalog.labels.items()}
        needed = {key for key in self._deployment.states if self._need_of(key) is not None}
        return catalog.wanted | (named - self._forced_out) | needed

    def state_of(self, key: VersionKey) -> VersionStatus:
        """Where a version is on this server."""
        return self._deployment.state_of(key)

    def subscribe(self) -> Subscription:
        """The changes from now on."""
        return self._changes.subscribe()

    def add_guard(self, guard: Guard) -> None:
        """Versions that ``guard`` knows a need for are not unloaded or deleted, whatever is asked."""
        self._guards.append(guard)

    # --- running ---

    async def start(self) -> None:
        """Loads what should be loaded; returns when all of it is READY or FAILED. Then follows the catalog."""
        await self._refresh()
        self._begin_steps()
        while self._steps:
            await asyncio.wait(self._steps.values())
        self._tasks.spawn(self._follow())

    async def stop(self) -> None:
        """Begins nothing more, and gives up what it was loading."""
        await self._tasks.cancel()

    async def refresh(self) -> None:
        """Looks into the catalog now rather than in a second: another process may just have changed it."""
        await self._refresh()

    # --- the operator's actions ---

    async def load(self, key: VersionKey, precision: Precision | None, actor: str) -> None:
        """Loads a version, and says in the catalog that it shall be loaded. Works, or changes nothing.

        ``precision`` None: the server's own. Raises ModelNotFound, VersionNotFound, DigestMismatch, VersionInUse
        (loaded in another precision), and what `Engine.load` raises.
        """
        await self._tasks.to_the_end(self._load(key, precision, actor))

    async def unload(self, key: VersionKey, force: bool, actor: str) -> None:
        """Lets a version finish its work and frees it; says in the catalog that it shall not be loaded.

        Raises VersionNotLoaded; VersionInUse when a label names it (unless ``force``) or a run has a lease on it.
        """
        await self._tasks.to_the_end(self._unload(key, force, actor))

    async def set_label(
        self,
        model: str,
        label: str,
        version: int,
        *,
        load: bool = False,
        unload_previous: bool = False,
        actor: str,
        comment: str = "",
    ) -> int | None:
        """Lets a label name a loaded version, in one step. Returns what it named before, None: nothing.

        ``load`` loads it first where necessary. ``unload_previous``: what it named before is unloaded, now, or as soon
        as no label and no lease needs it. Raises VersionNotLoaded, and what `load` raises.
        """
        check_label(label)
        previous = await self._tasks.to_the_end(self._set_label((model, version), label, load, actor, comment))
        if unload_previous and previous is not None and previous != version:
            await self._tasks.to_the_end(self._retire((model, previous), actor))
        return previous

    async def rollback(self, model: str, label: str, actor: str, comment: str = "") -> tuple[int, int]:
        """Lets a label name what it named before, loaded first where necessary; (until now, from now on).

        Raises VersionNotFound when there is no earlier version, VersionChanged when somebody moves the label meanwhile,
        and what `load` raises; the label stays where it is then.
        """
        return await self._tasks.to_the_end(self._rollback(model, label, actor, comment))

    async def remove_label(self, model: str, label: str, actor: str, comment: str = "") -> int:
        """Takes a label away. Returns what it named. Raises ModelNotFound, LabelNotFound."""
        return await self._tasks.to_the_end(self._remove_label(model, label, actor, comment))

    async def register(self, model: str, folder: Path, actor: str, comment: str = "") -> tuple[VersionRecord, bool]:
        """Copies a folder in as the model's next version; False: it has that content already."""
        return await self._tasks.to_the_end(self._register(model, folder, actor, comment))

    async def delete(self, key: VersionKey, actor: str, comment: str = "") -> None:
        """Takes a version out of the catalog, and its files off the disk where no other version has them.

        Raises VersionInUse while it is loaded, or a label or lease needs it.
        """
        await self._tasks.to_the_end(self._delete(key, actor, comment))

    # --- how, each under the version's lock ---

    async def _load(self, key: VersionKey, precision: Precision | None, actor: str) -> None:
        async with self._lock(key):
            await self._load_and_want(self._record(key), precision, actor)

    async def _load_and_want(self, record: VersionRecord, precision: Precision | None, actor: str) -> None:
        key = record.key
        was_loaded = self._deployment.is_loaded(key)
        precision = precision or self._wanted_precision(key)
        await self._deployment.load(record, precision)
        try:
            await asyncio.to_thread(self._catalog.set_wanted, *key, True, actor, precision=precision or "")
        except RmError:
            if not was_loaded:
                await self._deployment.unload(key)
            raise
        self._forced_out.discard(key)
        self._retiring.pop(key, None)
        await self._refresh()

    async def _unload(self, key: VersionKey, force: bool, actor: str) -> None:
        async with self._lock(key):
            self._record(key)
            is_loaded = self._deployment.is_loaded(key)
            if not is_loaded and self.state_of(key).state != "FAILED" and key not in self._in_catalog.wanted:
                raise VersionNotLoaded(f"{_name(key)} is not loaded on this server.")
            self._check_not_needed(key)
            labels = self._labels_naming(key)
            if is_loaded and labels and not force:
                raise VersionInUse(
                    f"{_name(key)} is named by the label {', '.join(labels)}. Move that first, or force the unload: "
                    "then calls by the label fail."
                )
            was_wanted, precision = key in self._in_catalog.wanted, self._wanted_precision(key)
            await asyncio.to_thread(self._catalog.set_wanted, *key, False, actor)
            # A run may have been given it meanwhile. From here to the engine no await: then none is given it any more.
            try:
                self._check_not_needed(key)
            except VersionInUse:
                if was_wanted:
                    await asyncio.to_thread(self._catalog.set_wanted, *key, True, actor, precision=precision or "")
                await self._refresh()
                raise
            self._retiring.pop(key, None)
            self._deployment.forget_failure(key)
            if labels:
                self._forced_out.add(key)
            if self._deployment.is_loaded(key):
                await self._deployment.unload(key)
            await self._refresh()

    async def _set_label(self, key: VersionKey, label: str, load: bool, actor: str, comment: str) -> int | None:
        async with self._lock(key):
            record = self._record(key)
            if load and not (self._deployment.is_loaded(key) and key in self._in_catalog.wanted):
                await self._load_and_want(record, None, actor)
            if not self._deployment.is_loaded(key):
                raise VersionNotLoaded(
                    f"{_name(key)} is not loaded, so the label {label!r} cannot move to it. Load it first, or ask to."
                )
            previous = await asyncio.to_thread(self._catalog.set_label, key[0], label, key[1], actor, comment)
            self._forced_out.discard(key)
            self._retiring.pop(key, None)
            await self._refresh()
            self._metrics.label_moved(key[0])
            return previous

    async def _rollback(self, model: str, label: str, actor: str, comment: str) -> tuple[int, int]:
        await self._refresh()  # another process may have registered what the label goes back to
        _, target = await asyncio.to_thread(self._catalog.rollback_versions, model, label)
        key = (model, target)
        async with self._lock(key):
            await self._load_and_want(self._record(key), None, actor)
            moved = await asyncio.to_thread(self._catalog.rollback, model, label, actor, comment, expected=target)
            self._retiring.pop(key, None)
            await self._refresh()
            self._metrics.label_moved(model)
            return moved

    async def _remove_label(self, model: str, label: str, actor: str, comment: str) -> int:
        previous = await asyncio.to_thread(self._catalog.remove_label, model, label, actor, comment)
        await self._refresh()
        self._metrics.label_moved(model)
        return previous

    async def _retire(self, key: VersionKey, actor: str) -> None:
        self._retiring[key] = actor
        try:
            await self._unload(key, False, actor)
        except NotFound:
            self._retiring.pop(key, None)
        except RmError as error:
            _log.info("%s stays loaded for now: %s", _name(key), error)

    async def _register(self, model: str, folder: Path, actor: str, comment: str) -> tuple[VersionRecord, bool]:
        registered = await asyncio.to_thread(
            add_version, self._catalog, self._artifacts, model, folder, actor=actor, comment=comment
        )
        await self._refresh()
        return registered

    async def _delete(self, key: VersionKey, actor: str, comment: str) -> None:
        async with self._lock(key):
            self._record(key)
            if self._deployment.is_loaded(key):
                raise VersionInUse(f"{_name(key)} is loaded on this server. Unload it first.")
            self._check_not_needed(key)
            await asyncio.to_thread(self._catalog.delete_version, *key, actor, comment)
            self._deployment.forget_failure(key)
            self._forced_out.discard(key)
            await self._refresh()
        await asyncio.to_thread(sweep_artifacts, self._catalog, self._artifacts)

    # --- following the catalog ---

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                await self._look()
            except Exception:
                # Whatever it is: who gives up here never sees a change again.
                _log.exception("The catalog could not be followed; the next try comes in %g s.", self._poll_s)

    async def _look(self) -> None:
        """Looks whether another process changed the catalog, and begins to retire what is needed no longer."""
        try:
            revision = await asyncio.to_thread(self._catalog.revision)
            if revision != self._in_catalog.revision:
                await self._refresh()
            self._metrics.catalog_reachable(True)
        except CatalogUnavailable as error:
            self._metrics.catalog_reachable(False)
            _log.warning("The catalog cannot be read; what is loaded goes on serving: %s", error)
            return
        self._begin_steps()
        for key, actor in self._retiring.items():
            if key not in self._steps and not self._labels_naming(key) and self._need_of(key) is None:
                self._steps[key] = self._tasks.spawn(self._retire_beside(key, actor))

    async def _retire_beside(self, key: VersionKey, actor: str) -> None:
        try:
            await self._retire(key, actor)
        finally:
            del self._steps[key]
        self._begin_steps()

    def _begin_steps(self) -> None:
        for step in self._next_steps():
            if step.key not in self._steps:
                self._steps[step.key] = self._tasks.spawn(self._do(step))

    def _next_steps(self) -> list[Step]:
        return next_steps(self.wanted, self._deployment.states, self._policy)

    async def _do(self, step: Step) -> None:
        key = step.key
        try:
            async with self._lock(key):
                # Somebody may have done it, or changed their mind, while we waited for the lock.
                if step not in self._next_steps():
                    return
                if step.what == "unload":
                    await self._deployment.unload(key)
                else:
                    await self._deployment.load(self._record(key), self._wanted_precision(key))
        except RmError as error:
            _log.warning("Could not %s %s: %s", step.what, _name(key), error)
        finally:
            del self._steps[key]
        self._begin_steps()

    async def _refresh(self) -> None:
        snapshot = await asyncio.to_thread(self._catalog.snapshot)
        if snapshot.revision < self._in_catalog.revision:
            return  # A newer one overtook it.
        before, self._in_catalog = self._in_catalog, snapshot
        changed = {key for key, _ in before.versions.items() ^ snapshot.versions.items()}
        self._serve()
        for model in sorted({model for model, _ in changed}):
            self._changes.publish("VERSIONS", model)

    def _on_state(self, key: VersionKey) -> None:
        self._serve()
        self._changes.publish("STATE", key[0])

    def _serve(self) -> None:
        before = self._served
        ready = {key for key, state in self._deployment.states.items() if state == "READY"}
        labels = served_labels(self._in_catalog.labels, before.labels, ready)
        self._served = replace(self._in_catalog, labels=MappingProxyType(labels))
        for model in sorted({model for (model, _), _ in before.labels.items() ^ labels.items()}):
            self._changes.publish("LABELS", model)

    # --- who needs what ---

    def _record(self, key: VersionKey) -> VersionRecord:
        if (record := self._in_catalog.versions.get(key)) is not None:
            return record
        model, version = key
        numbers = self._in_catalog.versions_of(model)
        if not numbers:
            raise ModelNotFound(f"The catalog has no model {model!r}.")
        raise VersionNotFound(f"{model} has no version {version}; it has {', '.join(map(str, numbers))}.")

    def _wanted_precision(self, key: VersionKey) -> Precision | None:
        wanted = self._in_catalog.wanted_precision.get(key)
        return next((precision for precision in PRECISIONS if precision == wanted), None)

    def _labels_naming(self, key: VersionKey) -> list[str]:
        labels = {*self._in_catalog.labels.items(), *self._served.labels.items()}
        return sorted({label for (model, label), version in labels if (model, version) == key})

    def _need_of(self, key: VersionKey) -> str | None:
        return next((need for guard in self._guards if (need := guard(key)) is not None), None)

    def _check_not_needed(self, key: VersionKey) -> None:
        if (need := self._need_of(key)) is not None:
            raise VersionInUse(f"{_name(key)} is needed: {need}")

    def _lock(self, key: VersionKey) -> asyncio.Lock:
        if key not in self._deployment.states:
            self._record(key)  # What never was gets no lock: callers can invent any number of versions.
        return self._locks.setdefault(key, asyncio.Lock())


def _name(key: VersionKey) -> str:
    return f"{key[0]}@{key[1]}"
