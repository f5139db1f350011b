"""Operators' calls on versions, without a network."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from fake_world import running_world
from rm_api.v1 import models_pb2

from rm_server.api import describe, model_service
from rm_server.api.calls import Call, Calls
from rm_server.api.model_service import ModelService


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
