"""Operators' calls on versions, without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import fake_versions as fake
import pytest
from fake_world import BY, World, fake_manifest, running_world
from rm_api.v1 import experiments_pb2, models_pb2
from sqlalchemy import Connection

from rm_server.api import describe, model_service
from rm_server.api.calls import Call, Calls
from rm_server.api.model_service import ModelService
from rm_server.api.shadow_service import ShadowService
from rm_server.errors import CatalogUnavailable
from rm_server.registry.manifest import write_manifest


async def test_other_calls_go_on_between_the_models_of_a_long_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = 0
    turns: dict[str, int] = {}

    async def others() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    def model_message(versions: Any, model: str) -> models_pb2.Model:
        turns[model] = turn
        return describe.model_message(versions, model)

    monkeypatch.setattr(model_service, "model_message", model_message)
    async with running_world(tmp_path) as world:
        for model in "abc":
            world.catalog.register(model, "a" * 64, "rules", 0, "ann")
        service = ModelService(world.versions, world.catalog, world.engine, cast(Calls, None))
        task = asyncio.create_task(others())
        response = await service.ListModels(models_pb2.ListModelsRequest(), cast(Call, None))
        task.cancel()
    assert [model.name for model in response.models] == ["a", "b", "c"]
    assert turns["a"] < turns["b"] < turns["c"]


@contextmanager
def away_after_a_change(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The catalog takes one more change, and cannot be read after that."""
    database, has_changed = world.catalog.database, False
    reading, writing = database.reading, database.writing

    @contextmanager
    def reading_before() -> Iterator[Connection]:
        if has_changed:
            raise CatalogUnavailable("away")
        with reading() as connection:
            yield connection

    @contextmanager
    def writing_once() -> Iterator[Connection]:
        nonlocal has_changed
        with writing() as connection:
            yield connection
        has_changed = True

    with monkeypatch.context() as away:
        away.setattr(database, "reading", reading_before)
        away.setattr(database, "writing", writing_once)
        yield
        assert has_changed


async def test_what_is_done_is_answered_so_though_the_catalog_cannot_be_read_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_world(tmp_path) as world:
        models = ModelService(world.versions, world.catalog, world.engine, cast(Calls, None))
        shadows = ShadowService(world.versions, world.catalog, flush=cast(Any, None))
        call = Call("", actor="ann")
        source = tmp_path / "new"
        write_manifest(source, fake.make_version(source, fake_manifest(0.5)))
        with away_after_a_change(world, monkeypatch):
            made = await models.RegisterVersion(models_pb2.RegisterVersionRequest(model="m", path=str(source)), call)
        assert (made.created, made.version.version, made.version.created_by) == (True, 1, "ann")
        assert made.version.state == models_pb2.VERSION_STATE_REGISTERED
        await world.versions.refresh()
        await world.versions.load(("m", 1), None, **BY)
        shadow = experiments_pb2.Shadow(model="m", version=1, share=0.5)
        with away_after_a_change(world, monkeypatch):
            response = await shadows.SetShadow(experiments_pb2.SetShadowRequest(shadow=shadow), call)
        assert response.shadow.share == 0.5
        with away_after_a_change(world, monkeypatch):  # who repeated it would hear that there is no shadow
            await shadows.RemoveShadow(experiments_pb2.RemoveShadowRequest(model="m", version=1), call)
        await world.versions.refresh()
        await world.versions.unload(("m", 1), force=False, **BY)
        with away_after_a_change(world, monkeypatch):  # and that there is no such version
            await models.DeleteVersion(models_pb2.DeleteVersionRequest(model="m", version=1), call)
        assert not world.catalog.snapshot().versions


async def test_an_unload_is_answered_though_another_server_deletes_the_version_meanwhile(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        models = ModelService(world.versions, world.catalog, world.engine, cast(Calls, None))
        key = await world.register(0.5)
        await world.versions.load(key, None, **BY)
        folder, digest = world.files(key), world.versions.snapshot.versions[key].digest
        busy = asyncio.create_task(world.score(key, fake.WAIT))
        await asyncio.sleep(0)
        unload = models.UnloadVersion(models_pb2.UnloadVersionRequest(selector="m@1"), Call("", actor="ann"))
        unloading = asyncio.create_task(unload)
        await fake.until(lambda: world.state(key) == "DRAINING")
        await asyncio.to_thread(world.elsewhere.delete_version, *key, "me")
        fake.open_gate(folder)
        answered = (await unloading).version
        assert (answered.version, answered.digest) == (1, digest)
        assert answered.state == models_pb2.VERSION_STATE_REGISTERED
        assert await busy == fake.WAIT / 2
