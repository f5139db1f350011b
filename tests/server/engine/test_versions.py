"""The operator's actions and the catalog, over fake versions, a real catalog and real artifacts."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import fake_versions as fake
import numpy as np
import pytest
from fake_versions import items, outcomes, until
from fake_world import BY, World, fake_manifest, running_world

from rm_server.backends.interface import SharedMemory
from rm_server.engine import deployment, following
from rm_server.engine.changes import ModelChange
from rm_server.engine.host import LoadReport
from rm_server.engine.loaded import LoadedVersion
from rm_server.errors import (
    CatalogUnavailable,
    DigestMismatch,
    GoldenMismatch,
    InvalidRequest,
    LabelNotFound,
    ModelNotFound,
    NonFiniteScore,
    RmError,
    VersionInUse,
    VersionNotFound,
    VersionNotLoaded,
    WeightsMismatch,
    WorkerFailed,
)
from rm_server.registry.catalog import Catalog
from rm_server.registry.manifest import write_manifest
from rm_server.registry.records import Snapshot, VersionKey
from rm_server.registry.run_records import Lease
from rm_server.registry.runs import Look, assign_run, look
from rm_server.scoring.routing import resolve
from rm_server.scoring.selector import parse

# --- one action after the other ---


async def test_registers_loads_labels_and_unloads(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        one, two = await world.register(0.5), await world.register(2.0)
        assert (one, two, world.state(one)) == (("m", 1), ("m", 2), "REGISTERED")
        await world.versions.load(one, None, **BY)
        status = world.versions.state_of(one)
        assert (status.state, status.memory_bytes, status.precision) == ("READY", 1000, "fp32")
        assert await world.versions.set_label("m", "stable", 1, **BY) is None
        assert await world.versions.set_label("m", "stable", 2, load=True, **BY) == 1
        assert world.versions.snapshot.labels == {("m", "stable"): 2}
        assert [await world.score(key, 10) for key in (one, two)] == [5.0, 20.0]
        await world.versions.unload(one, False, **BY)
        assert world.state(one) == "REGISTERED"
        assert world.versions.snapshot.wanted == {two}
        assert await world.versions.remove_label("m", "stable", **BY) == 2
        assert [record.actor for record in world.catalog.history("m")] == ["me"] * 8


async def test_what_does_not_exist_is_an_error_of_its_own(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        versions = world.versions
        key = await world.register()
        for missing, error in ((("n", 1), ModelNotFound), (("m", 7), VersionNotFound)):
            for action in (
                versions.load(missing, None, **BY),
                versions.unload(missing, False, **BY),
                versions.set_label(missing[0], "stable", missing[1], **BY),
                versions.delete(missing, **BY),
            ):
                with pytest.raises(error):
                    await action
        with pytest.raises(VersionNotLoaded):
            await versions.unload(key, False, **BY)
        with pytest.raises(VersionNotLoaded, match="Load it first"):
            await versions.set_label("m", "stable", 1, **BY)
        with pytest.raises(LabelNotFound):
            await versions.remove_label("m", "stable", **BY)
        with pytest.raises(InvalidRequest):
            await versions.set_label("m", "12", 1, load=True, **BY)
        assert world.state(key) == "REGISTERED"
        assert set(versions._following._locks) == {key}


async def test_a_version_that_fails_to_load_changes_nothing(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        good = await world.register()
        headless = await world.register(lacks_head=True)
        off = await world.register_with(fake_manifest(3.0), factor=3.1)
        await world.versions.set_label("m", "stable", 1, load=True, **BY)
        before = world.catalog.snapshot()
        for key, refusal in ((headless, WeightsMismatch), (off, GoldenMismatch)):
            with pytest.raises(refusal):
                await world.versions.set_label("m", "stable", key[1], load=True, **BY)
            status = world.versions.state_of(key)
            assert status.state == "FAILED"
            assert isinstance(status.error, refusal)
        assert world.catalog.snapshot() == before
        assert world.versions.snapshot.labels == {("m", "stable"): 1}
        assert await world.score(good, 10) == 5.0
        exposition = world.metrics.exposition("")[0].decode()
        for reason, number in (("ok", 1), ("weights_mismatch", 1), ("golden_mismatch", 1)):
            assert f'rm_loads_total{{model="m",reason="{reason}"}} {number}.0' in exposition


async def test_golden_examples_that_came_with_the_same_content_before_are_not_those_of_a_version(
    tmp_path: Path,
) -> None:
    async with running_world(tmp_path) as world:
        right = await world.register_with(fake_manifest(3.0), factor=3.0)
        source = world.folder / "source"
        write_manifest(source, fake_manifest(4.0))
        wrong, _ = await world.versions.register("n", source, **BY)
        assert wrong.digest == world.versions.snapshot.versions[right].digest
        await world.versions.load(right, None, **BY)
        with pytest.raises(GoldenMismatch):
            await world.versions.load(wrong.key, None, **BY)
        write_manifest(source, fake_manifest(3.0))
        right_json = fake_manifest(3.0).golden_json()
        assert await world.versions.register("n", source, **BY) == (replace(wrong, golden_json=right_json), False)
        await world.versions.load(wrong.key, None, **BY)
        assert world.state(wrong.key) == "READY"


async def test_files_that_were_changed_are_not_loaded(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        key = await world.register()
        file = world.files(key) / "rules.json"
        file.chmod(0o644)
        file.write_text('{"factor": 0.500001}')
        with pytest.raises(DigestMismatch):
            await world.versions.load(key, None, **BY)
        assert world.state(key) == "FAILED"
        assert not world.engine.loaded


async def test_a_version_that_something_needs_is_not_unloaded(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        needs: dict[VersionKey, str] = {}
        world.versions.add_guard(needs.get)
        key = await world.register()
        await world.versions.set_label("m", "stable", 1, load=True, **BY)
        with pytest.raises(VersionInUse, match="label stable"):
            await world.versions.unload(key, False, **BY)
        needs[key] = "the run r has a lease"
        with pytest.raises(VersionInUse, match="the run r has a lease"):
            # Force is about labels.
            await world.versions.unload(key, True, **BY)
        with pytest.raises(VersionInUse):
            await world.versions.delete(key, **BY)
        assert await world.score(key, 10) == 5.0
        needs.clear()
        await world.versions.unload(key, True, **BY)
        assert world.state(key) == "REGISTERED"


async def test_a_version_deleted_here_or_elsewhere_leaves_the_metrics(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        for factor, deletes_elsewhere in ((0.5, False), (0.25, True)):
            key = await world.register(factor)
            await world.versions.load(key, None, **BY)
            world.metrics.items_finished(key, "ok", 1)
            name = f'version="{key[1]}"'
            assert name in world.metrics.exposition("")[0].decode()
            await world.versions.unload(key, False, **BY)
            assert name in world.metrics.exposition("")[0].decode()
            if deletes_elsewhere:
                world.elsewhere.delete_version("m", key[1], actor="somebody")
                await until(lambda key=key: key not in world.versions.snapshot.versions)
            else:
                await world.versions.delete(key, **BY)
            assert name not in world.metrics.exposition("")[0].decode()


async def test_an_unload_is_undone_where_a_run_was_quicker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_world(tmp_path) as world:
        needs: dict[VersionKey, str] = {}
        world.versions.add_guard(needs.get)
        key = await world.register()
        await world.versions.load(key, "bf16", **BY)
        set_wanted = world.catalog.set_wanted

        def set_wanted_slowly(model: str, version: int, *arguments: Any, **options: Any) -> None:
            set_wanted(model, version, *arguments, **options)
            needs[model, version] = "the run r has a lease"

        monkeypatch.setattr(world.catalog, "set_wanted", set_wanted_slowly)
        with pytest.raises(VersionInUse, match="the run r has a lease"):
            await world.versions.unload(key, False, **BY)
        assert await world.score(key, 10) == 5.0
        assert world.catalog.snapshot().wanted_precision == {key: "bf16"}
        assert world.versions.snapshot.wanted == {key}


async def test_a_forced_unload_lasts_though_a_label_names_the_version(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        key = await world.register()
        await world.versions.set_label("m", "stable", 1, load=True, **BY)
        await world.versions.unload(key, True, **BY)
        assert world.catalog.history("m", 1)[0].detail == "forced, although named by the label stable"
        # Something else happens in the catalog, and the server looks at it again.
        other = world.elsewhere
        other.set_label("m", "canary", 1, actor="somebody")
        other.remove_label("m", "canary", actor="somebody")
        revision = other.revision()
        await until(lambda: world.versions.snapshot.revision == revision)
        await asyncio.sleep(0)
        assert world.state(key) == "REGISTERED"
        await world.versions.set_label("m", "stable", 1, load=True, **BY)
        assert world.state(key) == "READY"


async def test_the_previous_version_is_unloaded_when_its_work_is_done(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        one, two = await world.register(0.5), await world.register(2.0)
        await world.versions.set_label("m", "stable", 1, load=True, **BY)
        with world.engine.use(one):
            moving = asyncio.ensure_future(
                world.versions.set_label("m", "stable", 2, load=True, unload_previous=True, **BY)
            )
            await until(lambda: world.state(one) == "DRAINING")
            assert world.versions.snapshot.labels == {("m", "stable"): 2}
            assert await world.score(two, 10) == 20.0
            assert await outcomes(world.engine.submit(one, items([10]))) == [5.0]
        assert await moving == 1
        assert (world.state(one), world.state(two)) == ("REGISTERED", "READY")


async def test_the_previous_version_stays_until_nothing_needs_it(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        needs: dict[VersionKey, str] = {}
        world.versions.add_guard(needs.get)
        one, _ = await world.register(0.5), await world.register(2.0)
        needs[one] = "a lease"
        for label in ("stable", "canary"):
            await world.versions.set_label("m", label, 1, load=True, **BY)
        await world.versions.set_label("m", "stable", 2, load=True, unload_previous=True, **BY)
        assert world.state(one) == "READY"
        await world.versions.set_label("m", "canary", 2, **BY)
        assert world.state(one) == "READY"
        needs.clear()
        await until(lambda: world.state(one) == "REGISTERED")


async def test_the_catalog_is_followed_while_a_version_drains(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        needs: dict[VersionKey, str] = {}
        world.versions.add_guard(needs.get)
        one, _ = await world.register(0.5), await world.register(2.0)
        needs[one] = "a lease"
        await world.versions.set_label("m", "stable", 1, load=True, **BY)
        await world.versions.set_label("m", "stable", 2, load=True, unload_previous=True, **BY)
        with world.engine.use(one):
            needs.clear()
            await until(lambda: world.state(one) == "DRAINING")
            world.elsewhere.set_label("m", "canary", 2, actor="somebody")
            await until(lambda: ("m", "canary") in world.versions.snapshot.labels)
            assert world.state(one) == "DRAINING"
        await until(lambda: world.state(one) == "REGISTERED")


async def test_an_error_of_any_kind_does_not_end_the_following(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fail(*_: object) -> Look:
        asked.append(1)
        raise RuntimeError("a defect")

    async with running_world(tmp_path) as world:
        await world.register()
        await world.versions.set_label("m", "stable", 1, load=True, **BY)
        with monkeypatch.context() as broken:
            broken.setattr(following, "look", fail)
            await until(lambda: bool(asked))
        world.elsewhere.set_label("m", "canary", 1, actor="somebody")
        await until(lambda: ("m", "canary") in world.versions.snapshot.labels)


async def test_a_look_that_comes_late_does_not_hide_a_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_looked, may_go_on = threading.Event(), threading.Event()

    def late_once(catalog: Catalog, now: float) -> Look:
        found = look(catalog, now)
        if not has_looked.is_set():
            has_looked.set()
            may_go_on.wait(10)
        return found

    async with running_world(tmp_path) as world:
        key = await world.register()
        await world.versions.load(key, None, **BY)
        digest, now, needs = world.versions.snapshot.versions[key].digest, time.time(), []
        monkeypatch.setattr(following, "look", late_once)
        await until(has_looked.is_set)
        lease = Lease("r", *key, digest, None, 900.0, now, now + 900.0)
        await asyncio.to_thread(assign_run, world.elsewhere, lease, None)
        await world.versions._following.refresh_holders()

        async def note(_: Look) -> None:
            needs.append(world.versions._following.need_of(key))

        world.versions.after_look(note)
        may_go_on.set()
        await until(lambda: len(needs) >= 2)
        assert None not in needs


async def test_a_version_that_is_wanted_again_is_not_retired(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        one, _ = await world.register(0.5), await world.register(2.0)
        for label in ("stable", "canary"):
            await world.versions.set_label("m", label, 1, load=True, **BY)
        await world.versions.set_label("m", "stable", 2, load=True, unload_previous=True, **BY)
        await world.versions.load(one, None, **BY)
        await world.versions.remove_label("m", "canary", **BY)
        revision = world.catalog.revision()
        world.elsewhere.set_wanted("m", 2, True, "somebody", precision="fp32")
        await until(lambda: world.versions.snapshot.revision > revision)
        assert world.state(one) == "READY"


async def test_deletes_versions_and_their_files(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        one, broken = await world.register(0.5), await world.register(lacks_head=True)
        files = world.files(one)
        await world.versions.load(one, None, **BY)
        with pytest.raises(VersionInUse, match="is loaded"):
            await world.versions.delete(one, **BY)
        await world.versions.unload(one, False, **BY)
        await world.versions.delete(one, **BY)
        assert one not in world.versions.snapshot.versions
        assert not files.exists()
        with pytest.raises(WeightsMismatch):
            await world.versions.load(broken, None, **BY)
        await world.versions.delete(broken, **BY)
        assert world.versions.snapshot.versions == {}


async def test_a_version_in_another_precision_is_not_replaced(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        key = await world.register()
        await world.versions.load(key, "bf16", **BY)
        with pytest.raises(VersionInUse, match="loaded in bf16"):
            await world.versions.load(key, "fp32", **BY)
        await world.versions.load(key, None, **BY)
        assert world.versions.state_of(key).precision == "bf16"
    async with running_world(tmp_path) as world:
        assert world.versions.state_of(key).precision == "bf16"


# --- when something goes wrong in between ---


async def test_a_load_goes_on_when_its_caller_goes(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        key = await world.register(waits=True)
        caller = asyncio.ensure_future(world.versions.load(key, None, **BY))
        await until(lambda: world.state(key) == "LOADING")
        caller.cancel()
        fake.open_gate(world.files(key))
        await until(lambda: key in world.versions.snapshot.wanted)
        assert world.state(key) == "READY"


async def test_a_load_that_the_catalog_cannot_keep_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise CatalogUnavailable("no room")

    async with running_world(tmp_path) as world:
        key = await world.register()
        monkeypatch.setattr(world.catalog, "set_wanted", fail)
        with pytest.raises(CatalogUnavailable):
            await world.versions.load(key, None, **BY)
        assert world.state(key) == "REGISTERED"


async def test_a_catalog_that_is_away_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fail(*_: object) -> Look:
        asked.append(1)
        raise CatalogUnavailable("away")

    async with running_world(tmp_path) as world:
        key = await world.register()
        await world.versions.set_label("m", "stable", 1, load=True, **BY)
        with monkeypatch.context() as away:
            away.setattr(following, "look", fail)
            await until(lambda: len(asked) > 2)
            assert await world.score(key, 10) == 5.0
        world.elsewhere.set_label("m", "canary", 1, actor="somebody")
        await until(lambda: ("m", "canary") in world.versions.snapshot.labels)


async def test_a_catalog_that_stands_still_is_away_until_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, look = threading.Event(), following.look

    def look_later(*asked: Any) -> Look:
        goes_on.wait()
        return look(*asked)

    async with running_world(tmp_path) as world:
        versions, reachable = world.versions, partial(world.metrics.registry.get_sample_value, "rm_catalog_reachable")
        await until(lambda: reachable() == 1)
        monkeypatch.setattr(following, "LATE_S", 0.01)
        monkeypatch.setattr(following, "look", look_later)
        try:
            await until(lambda: reachable() == 0)
            assert "has not answered for 0.01 s" in str(versions.catalog_error)
        finally:
            goes_on.set()
        monkeypatch.setattr(following, "LATE_S", 10.0)
        await until(lambda: reachable() == 1 and versions.catalog_error is None)


async def test_what_the_catalog_took_has_been_done_though_it_cannot_be_read_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_world(tmp_path) as world:
        for factor in (1.0, 2.0, 3.0):
            _, version = await world.register(factor)
            await world.versions.set_label("m", "stable", version, load=True, **BY)
        with monkeypatch.context() as away:
            snapshot, roll_back = world.catalog.snapshot, world.catalog.rollback
            is_away = threading.Event()

            def noting_rollback(*args: Any, **options: Any) -> tuple[int, int]:
                moved = roll_back(*args, **options)
                is_away.set()
                return moved

            def failing_snapshot() -> Snapshot:
                if is_away.is_set():
                    raise CatalogUnavailable("away")
                return snapshot()

            away.setattr(world.catalog, "rollback", noting_rollback)
            away.setattr(world.catalog, "snapshot", failing_snapshot)
            # Were it an error, whoever repeats it would go back twice.
            assert await world.versions.rollback("m", "stable", **BY) == (3, 2)
        await until(lambda: world.versions.snapshot.labels == {("m", "stable"): 2})


@pytest.mark.parametrize("error", [CatalogUnavailable, WorkerFailed])
async def test_a_load_that_fails_for_a_reason_that_passes_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[RmError]
) -> None:
    monkeypatch.setattr(deployment, "RETRY_S", 0.05)
    async with running_world(tmp_path) as world:
        one, two = await world.register(0.5), await world.register(2.0)
        verify, failures = world.artifacts.verify, iter([error("away", retry_after_s=0.01), DigestMismatch("broken")])

        def failing(digest: str) -> None:
            if (failure := next(failures, None)) is not None:
                raise failure
            verify(digest)

        monkeypatch.setattr(world.artifacts, "verify", failing)
        world.elsewhere.set_wanted(*one, True, "somebody")
        await until(lambda: world.state(one) == "FAILED")
        assert isinstance(world.versions.state_of(one).error, error)
        # What is broken is tried again, too, as the first reason was another one; then it is left alone.
        await until(lambda: isinstance(world.versions.state_of(one).error, DigestMismatch))
        world.elsewhere.set_wanted(*two, True, "somebody")
        await until(lambda: world.state(two) == "READY")
        assert world.state(one) == "FAILED"


async def test_a_version_that_no_worker_can_load_again_has_failed(tmp_path: Path) -> None:
    async with running_world(tmp_path, workers=1) as world:
        key = await world.register()
        await world.versions.set_label("m", "stable", 1, load=True, **BY)
        (world.files(key) / "rules.json").unlink()
        (pid,) = world.engine.worker_pids
        os.kill(pid, signal.SIGKILL)
        await until(lambda: world.state(key) == "FAILED")


async def test_a_version_that_is_lost_the_moment_it_was_loaded_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_world(tmp_path) as world:
        key, engine = await world.register(), world.engine
        load = engine._load

        async def load_and_lose(*args: Any) -> LoadedVersion:
            loaded = await load(*args)
            asyncio.get_running_loop().call_soon(engine._lost, key, WorkerFailed("as if a worker had died just now"))
            return loaded

        with monkeypatch.context() as unlucky:
            unlucky.setattr(engine, "_load", load_and_lose)
            with pytest.raises(WorkerFailed, match="died just now"):
                await world.versions.load(key, None, **BY)
        assert world.state(key) == "FAILED"
        await world.versions.load(key, None, **BY)
        assert world.state(key) == "READY"


async def test_what_a_lost_version_shared_is_counted_with_another_one(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        one, two = await world.register(0.5), await world.register(2.0)
        for key in (one, two):
            await world.versions.load(key, None, **BY)
            # As if they were adapters over one base.
            report = LoadReport(1000, "fp32", np.empty(0), SharedMemory("base", 5000))
            world.engine.memory.came(key, world.files(key), "fp32", [report])
        world.engine._lost(one, NonFiniteScore("as if a new worker could not load it"))
        labels = {"model": "m", "version": str(two[1])}
        assert world.metrics.registry.get_sample_value("rm_version_memory_bytes", labels) == 6000


async def test_a_new_worker_loads_no_files_that_were_changed(tmp_path: Path) -> None:
    async with running_world(tmp_path, workers=1) as world:
        key = await world.register()
        await world.versions.set_label("m", "stable", 1, load=True, **BY)
        # By so little that the golden scores do not show it.
        file = world.files(key) / "rules.json"
        file.chmod(0o644)
        file.write_text('{"factor": 0.5000001}')
        (pid,) = world.engine.worker_pids
        os.kill(pid, signal.SIGKILL)
        await until(lambda: world.engine.worker_pids not in ([], [pid]))
        assert world.state(key) == "FAILED"
        assert isinstance(world.versions.state_of(key).error, DigestMismatch)


# --- following the catalog ---


async def test_a_server_that_starts_loads_what_is_wanted_and_what_labels_name(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        keys = [await world.register(factor) for factor in (1.0, 2.0, 3.0)]
        broken = await world.register(lacks_head=True)
        await world.versions.load(keys[0], None, **BY)
        world.catalog.set_label("m", "stable", 2, actor="me")
        world.catalog.set_wanted(*broken, True, "me")
    async with running_world(tmp_path) as world:
        assert [world.state(key) for key in keys] == ["READY", "READY", "REGISTERED"]
        assert world.state(broken) == "FAILED"


async def test_a_label_moved_elsewhere_follows_when_its_version_is_loaded(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        await world.register(0.5)
        two = await world.register(2.0, waits=True)
        await world.versions.set_label("m", "stable", 1, load=True, **BY)
        world.elsewhere.set_label("m", "stable", 2, actor="somebody")
        await until(lambda: world.state(two) == "LOADING")
        assert world.versions.snapshot.labels == {("m", "stable"): 1}
        fake.open_gate(world.files(two))
        await until(lambda: world.versions.snapshot.labels == {("m", "stable"): 2})
        assert world.state(two) == "READY"


async def move_to_a_broken_version(world: World) -> tuple[VersionKey, VersionKey]:
    """Another process moves the label of the first version, which serves, to the second, which cannot be loaded."""
    one, broken = await world.register(0.5), await world.register(lacks_head=True)
    await world.versions.set_label("m", "stable", 1, load=True, **BY)
    other = world.elsewhere
    other.set_label("m", "stable", 2, actor="somebody")
    other.set_wanted("m", 1, False, "somebody")
    await until(lambda: world.state(broken) == "FAILED")
    return one, broken


async def test_a_label_moved_elsewhere_to_a_broken_version_stays_where_it_was(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        one, _ = await move_to_a_broken_version(world)
        assert world.versions.snapshot.labels == {("m", "stable"): 1}
        with pytest.raises(VersionInUse):
            await world.versions.unload(one, False, **BY)
        assert await world.score(one, 10) == 5.0


async def test_what_is_deleted_elsewhere_serves_here_until_its_successor_does(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        one, broken = await move_to_a_broken_version(world)
        other = world.elsewhere
        other.delete_version("m", 1, "somebody")
        await until(lambda: one not in world.versions.snapshot.versions or world.versions.wanted == {broken})
        await world.versions.refresh()
        route = resolve(parse("m@stable"), world.versions.snapshot, None)
        assert await world.score(route.key, 10) == 5.0
        other.set_label("m", "stable", (await world.register(2.0))[1], actor="somebody")
        await until(lambda: world.versions.snapshot.labels == {("m", "stable"): 3})
        assert one not in world.versions.snapshot.versions


async def test_loads_and_unloads_what_another_process_wants(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        key = await world.register()
        world.elsewhere.set_wanted("m", 1, True, "somebody", precision="bf16")
        await until(lambda: world.state(key) == "READY")
        assert world.versions.state_of(key).precision == "bf16"
        world.elsewhere.set_wanted("m", 1, False, "somebody")
        await until(lambda: world.state(key) == "REGISTERED")


async def test_a_snapshot_that_was_overtaken_counts_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_world(tmp_path) as world:
        await world.register()
        old = world.catalog.snapshot()
        await world.versions.set_label("m", "stable", 1, load=True, **BY)
        with monkeypatch.context() as late:
            late.setattr(world.catalog, "snapshot", lambda: old)
            await world.versions.refresh()
        assert world.versions.snapshot.labels == {("m", "stable"): 1}


async def test_a_catalog_that_did_not_change_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_world(tmp_path) as world:
        await world.register()
        revisions, read = [], world.catalog.snapshot

        def snapshot() -> Snapshot:
            snapshot = read()
            revisions.append(snapshot.revision)
            return snapshot

        monkeypatch.setattr(world.catalog, "snapshot", snapshot)
        await world.versions.refresh()
        assert revisions == []
        world.elsewhere.register("n", "a" * 64, "rules", 0, "somebody")
        await world.versions.refresh()
        assert world.versions.snapshot.models() == ("m", "n")
        assert set(revisions) == {2}


async def test_tells_those_who_watch(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        watcher = world.versions.subscribe()
        await world.register()
        assert await anext(watcher) == ModelChange("VERSIONS", "m")
        await world.versions.set_label("m", "stable", 1, load=True, **BY)
        assert {await anext(watcher), await anext(watcher)} == {ModelChange("STATE", "m"), ModelChange("LABELS", "m")}


# --- many at once ---


async def test_32_operators_at_once_leave_no_half_state_and_fail_no_request(tmp_path: Path) -> None:
    """Loads, unloads and label moves at random, while requests follow the label."""
    chance = random.Random(7)
    async with running_world(tmp_path) as world:
        versions = world.versions
        keys = [await world.register(factor) for factor in (1.0, 2.0, 3.0, 4.0)]
        await versions.set_label("m", "stable", 1, load=True, **BY)
        is_over = False
        num_requests = 0

        async def operate() -> None:
            for _ in range(6):
                key = chance.choice(keys)
                action = chance.randrange(4)
                try:
                    if action == 0:
                        await versions.load(key, None, **BY)
                    elif action == 1:
                        await versions.unload(key, False, **BY)
                    else:
                        await versions.set_label("m", "stable", key[1], load=True, unload_previous=action == 2, **BY)
                except (VersionInUse, VersionNotLoaded):
                    pass  # Somebody else was quicker: a fair answer, and nothing has changed.

        async def request() -> None:
            nonlocal num_requests
            while not is_over:
                key = ("m", versions.snapshot.labels["m", "stable"])
                assert await world.score(key, 10) == 10.0 * key[1]
                num_requests += 1

        requests = [asyncio.ensure_future(request()) for _ in range(8)]
        await asyncio.gather(*(operate() for _ in range(32)))
        is_over = True
        await asyncio.gather(*requests)
        assert num_requests > 100
        snapshot = world.catalog.snapshot()
        await until(lambda: set(world.engine.loaded) == set(snapshot.wanted))
        assert snapshot.labels == versions.snapshot.labels
        assert ("m", snapshot.labels["m", "stable"]) in world.engine.loaded
        assert {world.state(key) for key in keys} <= {"READY", "REGISTERED"}
