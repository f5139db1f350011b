"""The operator's actions on versions, labels, splits and pins: each works, or changes nothing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from rm_server.backends.loading import check_spec
from rm_server.engine.changes import Subscription
from rm_server.engine.deployment import VersionStatus
from rm_server.engine.engine import Engine
from rm_server.engine.following import Following, Guard, VersionMetrics
from rm_server.engine.lifecycle import Policy
from rm_server.engine.loader import Trial
from rm_server.engine.pager import Pager, PagingMetrics
from rm_server.errors import CatalogUnavailable, NotFound, RmError, VersionInUse, VersionNotLoaded
from rm_server.registry import splits
from rm_server.registry.artifacts import ArtifactStore
from rm_server.registry.catalog import Catalog
from rm_server.registry.home import add_version, sweep_artifacts
from rm_server.registry.manifest import Precision
from rm_server.registry.names import check_label
from rm_server.registry.records import Snapshot, Split, VersionKey, VersionRecord, version_name
from rm_server.registry.runs import Look
from rm_server.registry.versions_by_name import CheckModel, any_model

T = TypeVar("T")

_log = logging.getLogger(__name__)


class ManagerMetrics(VersionMetrics, PagingMetrics, Protocol):
    """What is counted here; see rm_server/metrics."""


class VersionManager:
    """Loads, unloads, labels, divides and registers, one thing at a time for each version, and follows the catalog.

    Lives on the event loop; catalog and disk are used in threads. What has been begun goes on when the caller is
    cancelled. Everything may raise CatalogUnavailable.
    """

    def __init__(
        self,
        catalog: Catalog,
        artifacts: ArtifactStore,
        engine: Engine,
        metrics: ManagerMetrics,
        *,
        poll_s: float = 0.5,
        policy: Policy = "availability",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``poll_s``: how often the catalog is looked at. ``clock`` in seconds since the epoch, for leases."""
        self._catalog = catalog
        self._artifacts = artifacts
        self._metrics = metrics
        self._following = Following(catalog, artifacts, engine, metrics, poll_s=poll_s, policy=policy, clock=clock)
        self._deployment = self._following.deployment
        self._tasks = self._following.tasks
        self.pager = Pager(engine, self._following, metrics)
        """Brings back what made room for others."""
        self._deployment.make_room = self.pager.make_room
        # To be unloaded as soon as nothing needs them, and who wanted that.
        self._retiring: dict[VersionKey, str] = {}

    # --- looking ---

    @property
    def snapshot(self) -> Snapshot:
        """What requests are routed by: the catalog, except that a label follows only when its version is ready."""
        return self._following.served

    @property
    def wanted(self) -> frozenset[VersionKey]:
        """What should be loaded here: what the catalog says, what labels and splits name, what runs hold."""
        return self._following.wanted

    @property
    def catalog_error(self) -> RmError | None:
        """Why the catalog cannot be read at present; None: it can."""
        return self._following.catalog_error

    def state_of(self, key: VersionKey) -> VersionStatus:
        """Where a version is on this server."""
        return self._deployment.state_of(key)

    def subscribe(self) -> Subscription:
        """The changes from now on."""
        return self._following.changes.subscribe()

    def add_guard(self, guard: Guard) -> None:
        """Versions that ``guard`` knows a need for are neither unloaded nor deleted, whatever is asked."""
        self._following.add_guard(guard)

    def set_composite_trial(self, trial: Trial) -> None:
        """What a composite must pass before it serves: its golden examples, through all of its parts."""
        self._deployment.composite_trial = trial

    def after_look(self, hook: Callable[[Look], Awaitable[None]]) -> None:
        """``hook`` is awaited with each `Look` at the catalog, also those before an unload or a deletion."""
        self._following.after_look(hook)

    # --- running ---

    async def start(self) -> None:
        """Loads what should be loaded; returns when all of it is READY or FAILED. Then follows the catalog."""
        await self._following.start(self._retire_some)

    async def stop(self) -> None:
        """Begins nothing more, and gives up what it was loading."""
        await self._tasks.cancel()

    async def refresh(self) -> None:
        """Looks into the catalog now rather than in a second: another process may just have changed it."""
        await self._following.refresh()

    async def take_in(self) -> None:
        """As `refresh`, after a change of the catalog: that is done, and is no failure where it cannot be read now."""
        try:
            await self.refresh()
        except CatalogUnavailable as error:
            _log.warning("The catalog was changed, and could not be read after that; it will be soon: %s", error)

    # --- the operator's actions ---

    async def load(self, key: VersionKey, precision: Precision | None, actor: str, comment: str = "") -> None:
        """Loads a version, and says in the catalog that it shall be loaded. Works, or changes nothing.

        ``precision`` None: the one that the catalog keeps from a load which named it, else as `Deployment.load` has it.
        Raises ModelNotFound, VersionNotFound, DigestMismatch, VersionInUse (loaded in another precision), and what
        `Engine.load` raises.
        """
        await self._tasks.to_the_end(self._load(key, precision, actor, comment))

    async def unload(self, key: VersionKey, force: bool, actor: str, comment: str = "") -> None:
        """Lets a version finish its work and frees it; says in the catalog that it shall not be loaded.

        Raises VersionNotLoaded; VersionInUse when a label names it (unless ``force``) or a run has a lease on it.
        """
        await self._tasks.to_the_end(self._unload(key, force, actor, comment))

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
        move = partial(self._catalog.set_label, model, label, version, actor, comment)
        previous = await self._tasks.to_the_end(self._move_label((model, version), label, load, actor, comment, move))
        if unload_previous and previous is not None and previous != version:
            await self._tasks.to_the_end(self._retire((model, previous), actor))
        return previous

    async def promote(
        self, key: VersionKey, label: str, *, expected: int | None, why: str, actor: str, comment: str = ""
    ) -> int | None:
        """As `set_label`, loading where necessary, once the gate spoke; see `Catalog.promote`."""
        check_label(label)
        move = partial(self._catalog.promote, key[0], label, key[1], actor, comment, expected=expected, why=why)
        return await self._tasks.to_the_end(self._move_label(key, label, True, actor, comment, move))

    async def rollback(self, model: str, label: str, actor: str, comment: str = "") -> tuple[int, int]:
        """Lets a label name what it named before, loaded first where necessary; (until now, from now on).

        Raises VersionNotFound when there is no earlier version, VersionChanged when somebody moves the label meanwhile,
        and what `load` raises; the label stays where it is then.
        """
        return await self._tasks.to_the_end(self._rollback(model, label, actor, comment))

    async def remove_label(self, model: str, label: str, actor: str, comment: str = "") -> int:
        """Takes a label away. Returns what it named. Raises ModelNotFound, LabelNotFound."""
        return await self._tasks.to_the_end(self._remove_label(model, label, actor, comment))

    async def register(
        self, model: str, folder: Path, actor: str, comment: str = "", check_model: CheckModel = any_model
    ) -> tuple[VersionRecord, bool]:
        """Copies a folder in as the model's next version; False: it has that content already. See `add_version`."""
        add = partial(add_version, self._catalog, self._artifacts, model, folder, actor=actor, comment=comment)
        return await self._tasks.to_the_end(self._register(folder, partial(add, check_model=check_model)))

    async def delete(self, key: VersionKey, actor: str, comment: str = "") -> None:
        """Takes a version out of the catalog, and its files off the disk where no other version has them.

        Raises VersionInUse while it is loaded, or a label or lease needs it.
        """
        await self._tasks.to_the_end(self._delete(key, actor, comment))

    async def set_split(self, split: Split, *, load: bool = False, actor: str, comment: str = "") -> Split:
        """Divides the model's runs from now on. ``load``: loads the arms' versions first where necessary.

        Raises InvalidRequest, VersionNotLoaded, and what `load` raises.
        """
        splits.check_split(split)
        keys = {(split.model, arm.version) for arm in split.arms}
        change = partial(splits.set_split, self._catalog, split, actor, comment)
        return await self._tasks.to_the_end(self._name_loaded(keys, change, "be an arm", load, actor))

    async def remove_split(self, model: str, actor: str, comment: str = "") -> None:
        """Ends the model's split. Raises ModelNotFound; InvalidRequest where there is none."""
        await self._tasks.to_the_end(self._change(partial(splits.remove_split, self._catalog, model, actor, comment)))

    async def set_pin(self, run: str, key: VersionKey, actor: str, comment: str = "") -> None:
        """Gives a run a loaded version, when it asks next. Raises VersionNotLoaded."""
        change = partial(splits.set_pin, self._catalog, run, *key, actor, comment)
        await self._tasks.to_the_end(self._name_loaded({key}, change, "be pinned", False, actor))

    async def remove_pin(self, run: str, model: str, actor: str, comment: str = "") -> None:
        """Takes a pin away. Raises ModelNotFound, RunNotFound."""
        change = partial(splits.remove_pin, self._catalog, run, model, actor, comment)
        await self._tasks.to_the_end(self._change(change))

    # --- how, each under the version's lock ---

    async def _load(self, key: VersionKey, precision: Precision | None, actor: str, comment: str) -> None:
        async with self._following.lock(key):
            await self._load_and_want(self._following.record(key), precision, actor, comment)

    async def _load_and_want(
        self, record: VersionRecord, precision: Precision | None, actor: str, comment: str = ""
    ) -> None:
        key = record.key
        was_loaded = self._deployment.is_loaded(key)
        precision = precision or self._following.wanted_precision(key)
        await self._following.load(record, precision)
        try:
            await asyncio.to_thread(self._catalog.set_wanted, *key, True, actor, comment, precision=precision or "")
        except RmError:
            if not was_loaded:
                await self._deployment.unload(key)
            raise
        self._following.forced_out.discard(key)
        self._retiring.pop(key, None)
        await self.take_in()

    async def _unload(self, key: VersionKey, force: bool, actor: str, comment: str = "") -> None:
        async with self._following.lock(key):
            self._following.record(key)
            is_loaded = self._deployment.is_loaded(key)
            if not is_loaded and self.state_of(key).state != "FAILED" and key not in self._following.in_catalog.wanted:
                raise VersionNotLoaded(f"{version_name(key)} is not loaded on this server.")
            await self._following.refresh_holders()  # a run may just have ended on another server
            self._check_not_needed(key)
            labels = self._following.labels_naming(key)
            # What is paged out serves, too: the next call by the label brings it back.
            serves = is_loaded or key in self._deployment.paged_out
            if serves and labels and not force:
                raise VersionInUse(
                    f"{version_name(key)} is named by the label {', '.join(labels)}. Move that first, or force "
                    "the unload: then calls by the label fail."
                )
            was_wanted, precision = key in self._following.in_catalog.wanted, self._following.wanted_precision(key)
            why = f"forced, although named by the label {', '.join(labels)}" if serves and labels else ""
            await asyncio.to_thread(self._catalog.set_wanted, *key, False, actor, comment, why=why)
            # A run may have been given it meanwhile, here or on another server; a split may have got it.
            await self.refresh()
            await self._following.refresh_holders()
            # From here to the engine no await: then none is given it any more.
            try:
                self._check_not_needed(key)
            except VersionInUse:
                if was_wanted:
                    await asyncio.to_thread(self._catalog.set_wanted, *key, True, actor, precision=precision or "")
                await self.refresh()
                raise
            self._retiring.pop(key, None)
            self._deployment.forget(key)
            if labels:
                self._following.forced_out.add(key)
            if self._deployment.is_loaded(key):
                await self._deployment.unload(key)
            await self.take_in()

    async def _move_label(
        self, key: VersionKey, label: str, load: bool, actor: str, comment: str, move: Callable[[], int | None]
    ) -> int | None:
        async with self._following.lock(key):
            record = self._following.record(key)
            if load and not (self._is_ready(key) and key in self._following.in_catalog.wanted):
                await self._load_and_want(record, None, actor, comment)
            if not self._is_ready(key):
                raise VersionNotLoaded(
                    f"{version_name(key)} is not loaded, so the label {label!r} cannot move to it. Load it "
                    "first, or ask to."
                )
            previous = await asyncio.to_thread(move)
            self._following.forced_out.discard(key)
            self._retiring.pop(key, None)
            await self.take_in()
            self._metrics.label_moved(key[0])
            return previous

    async def _rollback(self, model: str, label: str, actor: str, comment: str) -> tuple[int, int]:
        await self.refresh()  # another process may have registered what the label goes back to
        _, target = await asyncio.to_thread(self._catalog.rollback_versions, model, label)
        key = (model, target)
        async with self._following.lock(key):
            await self._load_and_want(self._following.record(key), None, actor, comment)
            moved = await asyncio.to_thread(self._catalog.rollback, model, label, actor, comment, expected=target)
            self._retiring.pop(key, None)
            await self.take_in()
            self._metrics.label_moved(model)
            return moved

    async def _remove_label(self, model: str, label: str, actor: str, comment: str) -> int:
        previous = await asyncio.to_thread(self._catalog.remove_label, model, label, actor, comment)
        await self.take_in()
        self._metrics.label_moved(model)
        return previous

    async def _name_loaded(
        self, keys: Iterable[VersionKey], change: Callable[[], T], what: str, load: bool, actor: str
    ) -> T:
        """A change of the catalog that names loaded versions, which stay loaded meanwhile."""
        async with AsyncExitStack() as stack:
            for key in sorted(keys, reverse=True):  # a composite before its parts, as in every load
                await stack.enter_async_context(self._following.lock(key))
                if load and not self._is_ready(key):
                    await self._load_and_want(self._following.record(key), None, actor)
                if not self._is_ready(key):
                    self._following.record(key)
                    raise VersionNotLoaded(f"{version_name(key)} is not loaded, so it cannot {what}. Load it first.")
                self._retiring.pop(key, None)
            return await self._change(change)

    async def _change(self, change: Callable[[], T]) -> T:
        result = await asyncio.to_thread(change)
        await self.take_in()
        return result

    async def _retire(self, key: VersionKey, actor: str) -> None:
        self._retiring[key] = actor
        try:
            await self._unload(key, False, actor)
        except NotFound:
            self._retiring.pop(key, None)
        except RmError as error:
            _log.info("%s stays loaded for now: %s", version_name(key), error)

    async def _register(self, folder: Path, add: Callable[[], T]) -> T:
        await asyncio.to_thread(check_spec, folder)
        return await self._change(add)

    async def _delete(self, key: VersionKey, actor: str, comment: str) -> None:
        async with self._following.lock(key):
            self._following.record(key)
            if self._deployment.is_loaded(key):
                raise VersionInUse(f"{version_name(key)} is loaded on this server. Unload it first.")
            await self._following.refresh_holders()
            self._check_not_needed(key)
            await asyncio.to_thread(self._catalog.delete_version, *key, actor, comment)
            self._deployment.forget(key)
            self._following.forced_out.discard(key)
            await self.take_in()
        try:
            await asyncio.to_thread(sweep_artifacts, self._catalog, self._artifacts)
        except CatalogUnavailable as error:
            _log.warning("%s is deleted; its files stay until the next version is: %s", version_name(key), error)

    def _retire_some(self) -> None:
        """Begins to unload what was to go as soon as nothing needs it."""
        for key, actor in self._retiring.items():
            is_free = not self._following.labels_naming(key) and self._following.need_of(key) is None
            if is_free and not self._following.is_busy(key):
                self._following.begin(key, partial(self._retire, key, actor))

    def _is_ready(self, key: VersionKey) -> bool:
        """Whether its calls are answered: a composite that is loaded may lack a part."""
        return self.state_of(key).state == "READY"

    def _check_not_needed(self, key: VersionKey) -> None:
        if (need := self._following.need_of(key)) is not None:
            raise VersionInUse(f"{version_name(key)} is needed: {need}")
