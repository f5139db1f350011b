"""What a composite does beyond the sum: parts are asked once, side by side, and end together. The parts are fake."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fake_versions as fake
import pytest
from fake_versions import until
from fake_world import BY, World, running_world

from rm_server.config import LimitSettings, RunSettings
from rm_server.engine import deployment
from rm_server.errors import (
    CatalogUnavailable,
    DeadlineExceeded,
    NonFiniteScore,
    QueueFull,
    VersionInUse,
    VersionNotLoaded,
    WeightsMismatch,
)
from rm_server.metrics import Metrics
from rm_server.registry.manifest import Manifest, write_manifest
from rm_server.registry.records import Arm, Split, VersionKey
from rm_server.registry.runs import Look
from rm_server.scoring.composites import Composites
from rm_server.scoring.evaluation import Component
from rm_server.scoring.runs import Runs
from rm_server.scoring.scorer import ScoreAnswer, ScoreCall, Scorer

HALF: dict[str, Any] = {"name": "half", "version": "m@1"}
DOUBLE: dict[str, Any] = {"name": "double", "version": "m@2"}
EVEN: dict[str, Any] = {"name": "even", "rule": {"type": "token_id_share", "modulus": 2, "residue": 0}}


class Service:
    """Version m@1 has factor 0.5, m@2 has factor 2; both registered, none loaded."""

    def __init__(self, world: World) -> None:
        self.world, self.engine, self.versions = world, world.engine, world.versions
        composites = Composites(world.engine, world.artifacts, lambda: world.versions.snapshot)
        world.versions.set_composite_trial(composites.trial)
        metrics = Metrics()
        runs = Runs(world.versions, world.catalog, RunSettings(), metrics)
        self._scorer = Scorer(world.engine, world.versions, runs, LimitSettings(), metrics, composites)

    async def deploy(self, *components: dict[str, Any]) -> VersionKey:
        key = await self.register(*components)
        await self.versions.load(key, None, **BY)
        return key

    async def register(self, *components: dict[str, Any], model: str = "q") -> VersionKey:
        folder = self.world.folder / "composite"
        folder.mkdir(exist_ok=True)
        (folder / "composite.json").write_text(json.dumps({"components": components}))
        write_manifest(folder, Manifest("composite", transform="weighted_sum"))
        record, _ = await self.versions.register(model, folder, **BY)
        return record.key

    async def score(self, *completions: tuple[int, ...], deadline: float | None = None, **options: Any) -> ScoreAnswer:
        return await self._scorer.score(ScoreCall("q@1", [((), completions)], **options), deadline)

    def batches(self, version: int) -> list[int]:
        return fake.noted(self.world.files(("m", version)))


@asynccontextmanager
async def running_service(folder: Path, **settings: Any) -> AsyncIterator[Service]:
    """``settings`` are those of the engine."""
    async with running_world(folder, **settings) as world:
        await world.register(0.5)
        await world.register(2.0)
        yield Service(world)


async def test_components_have_the_order_of_the_file(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        await service.deploy({**EVEN, "weight": 10, "bias": -1}, DOUBLE, {**HALF, "weight": -1, "clip": [0, 1]})
        answer = await service.score((2, 3), (4,))
        assert [item.value for item in answer.items] == [10 * -0.5 + 10 - 1, 10 * 0 + 8 - 1]
        digests = [service.versions.snapshot.versions["m", version].digest for version in (1, 2)]
        assert answer.items[0].components == (
            Component("even", -0.5, 10.0),
            Component("double", 10.0, 1.0, 2, digests[1]),
            Component("half", 1.0, -1.0, 1, digests[0]),
        )
        assert [item.num_tokens for item in answer.items] == [6, 3]


async def test_a_part_that_is_named_twice_is_computed_once(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        await service.deploy(HALF, {**HALF, "name": "again", "gain": -3})
        before = len(service.batches(1))
        answer = await service.score((2,), (8,), bypass_cache=True)
        assert [item.value for item in answer.items] == [-2.0, -8.0]
        assert service.batches(1)[before:] == [2]


async def test_each_part_has_its_own_place_in_the_cache(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        await service.deploy(HALF, DOUBLE, EVEN)
        first = await service.score((7, 2))
        before = service.batches(1), service.batches(2)
        assert (await service.score((7, 2))).items == first.items
        assert (service.batches(1), service.batches(2)) == before


async def test_an_item_fails_where_a_part_or_the_sum_is_no_number(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        await service.deploy(HALF, {**DOUBLE, "gain": 1e308, "weight": 10})
        good, nan, infinite = (await service.score((1,), (fake.NAN,), (90,))).items
        assert isinstance(nan.error, NonFiniteScore)
        assert nan.error.message.startswith("Component 'half' (m@1): ")
        assert isinstance(infinite.error, NonFiniteScore)
        assert "weighted sum" in infinite.error.message
        assert good.value is None  # 1e308 * 2 is too large, too


async def test_a_deadline_ends_all_parts(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        await service.deploy(HALF, DOUBLE)
        deadline = asyncio.get_running_loop().time() + 0.05
        with pytest.raises(DeadlineExceeded, match=r"Component '(half|double)'"):
            await service.score((fake.WAIT,), (5,), deadline=deadline)
        for version in (1, 2):
            fake.open_gate(service.world.files(("m", version)))
        await until(lambda: service.engine.queue_stats.items == 0)
        assert (await service.score((4,))).items[0].value == 10.0


async def test_who_goes_away_takes_all_parts_along(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        await service.deploy(HALF, DOUBLE)
        call = asyncio.create_task(service.score((fake.WAIT,), *[(number,) for number in range(2, 20)]))
        await until(lambda: any(service.batches(version)[-1:] == [19] for version in (1, 2)))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: service.engine.queue_stats.items == 0)
        for version in (1, 2):
            fake.open_gate(service.world.files(("m", version)))


async def test_a_full_queue_refuses_the_whole_call(tmp_path: Path) -> None:
    async with running_service(tmp_path, max_queued_items=3) as service:
        await service.deploy(HALF, DOUBLE)
        with pytest.raises(QueueFull, match="Component"):
            await service.score((1,), (2,), (3,), (4,))
        await until(lambda: service.engine.queue_stats.items == 0)


async def test_a_composite_fails_when_a_part_is_lost_and_comes_back(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        key = await service.deploy(HALF, DOUBLE)
        await service.versions.set_label("q", "stable", 1, **BY)
        service.engine._lost(("m", 2), NonFiniteScore("as if a new worker could not load it"))
        assert service.world.state(key) == "FAILED"
        with pytest.raises(VersionNotLoaded, match=r"Component 'double' \(m@2\)"):
            await service.score((1,))
        await service.engine._pool.unload(("m", 2))
        await service.versions.load(key, None, **BY)
        assert service.world.state(key) == "READY"
        assert (await service.score((2,))).items[0].value == 5.0


async def test_a_composite_whose_part_is_lost_for_now_says_when_to_come_back(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        await service.deploy(HALF, DOUBLE)
        service.engine._lost(("m", 2), CatalogUnavailable("as if the store were away", retry_after_s=2.0))
        with pytest.raises(CatalogUnavailable, match="q@1 is made of m@2") as refusal:
            await service.score((1,))
        assert refusal.value.retry_after_s is not None


async def test_what_lacks_a_part_gets_no_label_until_it_is_loaded_again(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        key = await service.deploy(HALF, DOUBLE)
        service.engine._lost(("m", 2), NonFiniteScore("as if a new worker could not load it"))
        with pytest.raises(VersionNotLoaded, match="cannot move to it"):
            await service.versions.set_label("q", "stable", 1, **BY)
        with pytest.raises(VersionNotLoaded, match="cannot be pinned"):
            await service.versions.set_pin("r", key, **BY)
        await service.engine._pool.unload(("m", 2))
        await service.versions.set_label("q", "stable", 1, load=True, **BY)
        assert service.world.state(key) == "READY"


async def test_a_composite_that_lacks_a_part_is_ready_again_when_it_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment, "RETRY_S", 0.0)
    looks: list[Look] = []

    async def note(look: Look) -> None:
        looks.append(look)

    async with running_service(tmp_path) as service:
        key = await service.deploy(HALF, DOUBLE)
        service.versions.after_look(note)
        service.engine._lost(("m", 2), NonFiniteScore("which does not pass"))
        await service.engine._pool.unload(("m", 2))
        begun = len(looks)
        await until(lambda: len(looks) >= begun + 3)
        assert [service.world.state(one) for one in (key, ("m", 2))] == ["FAILED", "FAILED"]
        await service.versions.load(("m", 2), None, **BY)
        await until(lambda: service.world.state(key) == "READY")
        assert (await service.score((2,))).items[0].value == 5.0


async def test_parts_are_let_go_with_the_composite(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        key = await service.deploy(HALF, DOUBLE)
        assert service.versions.wanted == {key, ("m", 1), ("m", 2)}
        with pytest.raises(VersionInUse, match="the composite q@1 is made of it"):
            await service.versions.unload(("m", 1), True, **BY)
        await service.versions.unload(key, False, **BY)
        await until(lambda: not service.engine.loaded)
        assert service.versions.wanted == frozenset()


async def test_a_split_between_a_composite_and_its_part_waits_for_nobody_for_ever(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        service = Service(world)
        part = await world.register(0.5, waits=True)
        composite = await service.register(HALF, model="m")
        split = Split("m", (Arm("a", part[1], 1.0), Arm("b", composite[1], 1.0)), "s", datetime.now(UTC))
        dividing = asyncio.ensure_future(world.versions.set_split(split, load=True, **BY))
        await until(lambda: world.state(part) == "LOADING")
        loading = asyncio.ensure_future(world.versions.load(composite, None, **BY))
        await asyncio.sleep(0.05)
        fake.open_gate(world.files(part))
        _, waiting = await asyncio.wait({dividing, loading}, timeout=60)
        assert not waiting
        assert [world.state(key) for key in (part, composite)] == ["READY", "READY"]


async def test_a_composite_whose_part_does_not_load_says_so(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        broken = await service.world.register(3.0, lacks_head=True)
        with pytest.raises(WeightsMismatch, match=r"Its part m@3 could not be loaded: score\.weight is missing"):
            await service.deploy(HALF, {"name": "broken", "version": "m@3"})
        assert (service.world.state(("q", 1)), service.world.state(broken)) == ("FAILED", "FAILED")
        await until(lambda: not service.engine.loaded)  # the other part was loaded for nothing


async def test_a_composite_on_another_server_is_loaded_with_its_parts(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        key = await service.deploy(HALF, DOUBLE)
        await service.versions.unload(key, False, **BY)
        await until(lambda: not service.engine.loaded)
        service.world.elsewhere.set_wanted(*key, True, "another server")
        await until(lambda: service.world.state(key) == "READY")
        assert (await service.score((2,))).items[0].value == 5.0
