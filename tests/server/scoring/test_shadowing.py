"""Shadowing over fake versions: callers go on whatever becomes of the shadow, and its pairs wait for the catalog."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import fake_versions as fake
import pytest
from fake_versions import until
from fake_world import BY, World, running_world

from rm_server.backends.items import EncodedItem
from rm_server.config import ShadowSettings
from rm_server.engine.work import ItemScore
from rm_server.errors import CatalogUnavailable
from rm_server.metrics import Metrics
from rm_server.registry.manifest import Manifest, write_manifest
from rm_server.registry.records import VersionKey
from rm_server.registry.shadows import ShadowPair, pairs_of, set_shadow
from rm_server.scoring import shadow_pairs
from rm_server.scoring.composites import Composites
from rm_server.scoring.recent_scores import RecentScores
from rm_server.scoring.routing import Route
from rm_server.scoring.scorer import ScoreCall
from rm_server.scoring.shadow_pairs import PairBuffer
from rm_server.scoring.shadowing import Shadowing

LIVE, SHADOW, COMPOSITE = ("m", 1), ("m", 2), ("m", 3)
EVEN = {"name": "even", "rule": {"type": "token_id_share", "modulus": 2, "residue": 0}, "weight": 100}
ROUTE = Route(LIVE, "d" * 64, None)
CALL = ScoreCall("m@1", [((1,), [(2,), (3,)]), ((4,), [(5,)])], run="r", request_id="c")
SCORES = (1.0, None, 3.0)


class Desk:
    """Shadowing with one shadow of all calls."""

    def __init__(
        self, world: World, composites: Composites, shadow: VersionKey, vocabularies: dict[VersionKey, str] | None
    ) -> None:
        self.world = world
        self._shadow = shadow
        self.metrics = Metrics()
        self.pairs: list[ShadowPair] = []
        known = vocabularies or {}

        async def vocabulary_of(key: VersionKey) -> str:
            return known.get(key, "")

        self.shadowing = Shadowing(
            world.engine, composites, lambda: world.versions.snapshot, vocabulary_of, self.pairs.extend, self.metrics
        )

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def outcome(self, outcome: str) -> float:
        return self.count("rm_shadow_items_total", model="m", version=str(self._shadow[1]), outcome=outcome)

    def dropped(self, reason: str) -> float:
        return self.count("rm_shadow_dropped_total", reason=reason)


async def start(world: World, vocabularies: dict[VersionKey, str] | None = None, shadow: VersionKey = SHADOW) -> Desk:
    """Version 1 has the factor 0.5, version 2 has 2, and version 3, if it is the shadow, is the sum of both."""
    composites = Composites(world.engine, world.artifacts, lambda: world.versions.snapshot)
    world.versions.set_composite_trial(composites.trial)
    await world.register(0.5)
    await world.register(2.0)
    for key in (LIVE, SHADOW):
        await world.versions.load(key, None, "me")
    if shadow == COMPOSITE:
        folder = world.folder / "composite"
        folder.mkdir()
        components = [{"name": name, "version": name} for name in ("m@1", "m@2")]
        (folder / "composite.json").write_text(json.dumps({"components": [*components, EVEN]}))
        write_manifest(folder, Manifest("composite", transform="weighted_sum"))
        await world.versions.register("m", folder, **BY)
        await world.versions.load(COMPOSITE, None, "me")
    set_shadow(world.catalog, *shadow, 1.0, "me")
    await world.versions.refresh()
    return Desk(world, composites, shadow, vocabularies)


async def test_items_with_a_score_are_paired_in_their_groups(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        desk = await start(world)
        desk.shadowing.scored(CALL, ROUTE, SCORES)
        await until(lambda: len(desk.pairs) == 2)
        assert [(pair.score, pair.shadow_score, pair.run) for pair in desk.pairs] == [(1.0, 6.0, "r"), (3.0, 18.0, "r")]
        assert len({pair.group_key for pair in desk.pairs}) == 2
        assert desk.outcome("ok") == 2


@pytest.mark.parametrize(
    ("vocabularies", "is_compared"),
    [({LIVE: "a", SHADOW: "a"}, True), ({LIVE: "a", SHADOW: "b"}, False), ({LIVE: "a"}, False)],
)
async def test_ids_are_compared_where_they_mean_the_same(
    tmp_path: Path, vocabularies: dict[VersionKey, str], is_compared: bool
) -> None:
    async with running_world(tmp_path) as world:
        desk = await start(world, vocabularies)
        desk.shadowing.scored(CALL, ROUTE, SCORES)
        await until(lambda: desk.outcome("ok") + desk.dropped("other_vocabulary") == 2)
        assert (len(desk.pairs) == 2) is is_compared


async def test_a_shadow_that_is_away_is_counted(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        desk = await start(world)
        await world.engine.unload(SHADOW)
        desk.shadowing.scored(CALL, ROUTE, SCORES)
        await until(lambda: desk.outcome("version_not_loaded") == 2)
        assert desk.pairs == []


async def test_a_shadow_that_goes_while_its_work_waits_is_counted(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        desk = await start(world)
        files = world.files(LIVE)
        (busy,) = world.engine.submit(LIVE, fake.items([fake.WAIT]))
        desk.shadowing.scored(CALL, ROUTE, SCORES)
        for _ in range(5):
            await asyncio.sleep(0)
        unloading = asyncio.create_task(world.engine.unload(SHADOW))
        await until(lambda: desk.dropped("unloaded") == 2)
        fake.open_gate(files)
        await unloading
        assert (await busy).value == fake.WAIT / 2


async def test_a_composite_shadows_with_all_of_its_parts(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        desk = await start(world, shadow=COMPOSITE)
        desk.shadowing.scored(CALL, ROUTE, SCORES)
        await until(lambda: len(desk.pairs) == 2)
        # The sum of the ids times 0.5 and 2, and 100 times the share of even ids in the completion.
        assert [pair.shadow_score for pair in desk.pairs] == [2.5 * 3 + 100, 2.5 * 9]
        assert desk.outcome("ok") == 2


async def test_a_composite_gives_up_when_a_part_goes_while_its_work_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_world(tmp_path) as world:
        desk = await start(world, shadow=COMPOSITE)
        submit, submitted = world.engine.submit_background, set()

        def noting(key: VersionKey, items: Sequence[EncodedItem]) -> list[asyncio.Future[ItemScore]]:
            submitted.add(key)
            return submit(key, items)

        monkeypatch.setattr(world.engine, "submit_background", noting)
        files = world.files(LIVE)
        (busy,) = world.engine.submit(LIVE, fake.items([fake.WAIT]))
        desk.shadowing.scored(CALL, ROUTE, SCORES)
        await until(lambda: submitted == {LIVE, SHADOW, COMPOSITE})
        unloading = asyncio.create_task(world.engine.unload(SHADOW))
        await until(lambda: desk.dropped("unloaded") == 2)
        fake.open_gate(files)
        await unloading
        assert (await busy).value == fake.WAIT / 2
        assert desk.pairs == []


async def test_what_is_under_way_is_bounded(tmp_path: Path) -> None:
    async with running_world(tmp_path, max_background_items=3) as world:
        desk = await start(world)
        for _ in range(3):
            desk.shadowing.scored(CALL, ROUTE, SCORES)
        assert desk.dropped("queue_full") == 4
        await until(lambda: desk.outcome("ok") == 2)
        desk.shadowing.scored(CALL, ROUTE, SCORES)
        await until(lambda: desk.outcome("ok") == 4)


async def test_bad_items_fail_alone(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        desk = await start(world)
        call = ScoreCall("m@1", [((1,), [(fake.NAN,), (3,), (-1,)])], request_id="c")
        desk.shadowing.scored(call, ROUTE, (1.0, 2.0, 3.0))
        await until(lambda: desk.outcome("ok") == 1)
        assert (desk.outcome("non_finite_score"), desk.outcome("invalid_token_ids")) == (1, 1)
        assert [(pair.score, pair.shadow_score) for pair in desk.pairs] == [(2.0, 8.0)]


async def test_other_models_and_removed_shadows_are_left_alone(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        desk = await start(world)
        desk.shadowing.scored(CALL, Route(("n", 1), "d" * 64, None), SCORES)
        desk.shadowing.scored(CALL, Route(SHADOW, "d" * 64, None), SCORES)
        desk.shadowing.scored(CALL, ROUTE, (None, None, None))
        desk.shadowing.scored(CALL, ROUTE, SCORES)
        await until(lambda: desk.outcome("ok") == 2)
        assert len(desk.pairs) == 2


# --- pairs on their way ---


def pairs(*numbers: int) -> list[ShadowPair]:
    time = datetime(2026, 1, 1, tzinfo=UTC)
    return [ShadowPair("m", 2, 1, time, "r", "g", float(number), float(2 * number + 1)) for number in numbers]


async def test_pairs_wait_while_the_catalog_is_away_up_to_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_world(tmp_path) as world:
        await start(world)
        metrics = Metrics()
        settings = ShadowSettings(max_buffered_pairs=3)
        buffer = PairBuffer(world.catalog, settings, metrics, lambda key: True)

        def away(*_: object) -> None:
            raise CatalogUnavailable("away")

        with monkeypatch.context() as patch:
            patch.setattr(shadow_pairs, "add_pairs", away)
            buffer.add(pairs(1, 2))
            with pytest.raises(CatalogUnavailable):
                await buffer.flush()
            buffer.add(pairs(3, 4))
        await buffer.flush()
        await buffer.flush()
        assert [pair.score for pair in pairs_of(world.catalog, "m", 2, 1)[0]] == [2.0, 3.0, 4.0]
        assert metrics.registry.get_sample_value("rm_shadow_dropped_total", {"reason": "buffer_full"}) == 1


async def test_the_gauges_say_how_a_shadow_agrees_and_go_with_it(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        await start(world)
        metrics = Metrics()
        is_shadow = [True]
        settings = ShadowSettings(flush_interval_s=0.001)
        buffer = PairBuffer(world.catalog, settings, metrics, lambda key: is_shadow[0])
        running = asyncio.create_task(buffer.run())

        def gauge(name: str) -> float | None:
            return metrics.registry.get_sample_value(name, {"model": "m", "version": "2"})

        buffer.add(pairs(*range(50)))
        await until(lambda: gauge("rm_shadow_pearson") is not None)
        assert gauge("rm_shadow_pearson") == pytest.approx(1.0)
        assert gauge("rm_shadow_shift_std") == pytest.approx(25.5 / 14.577, rel=1e-3)
        is_shadow[0] = False
        await until(lambda: gauge("rm_shadow_pearson") is None)
        running.cancel()


async def test_the_gauges_are_of_the_last_pairs_also_after_another_version_took_over(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        await start(world)
        metrics = Metrics()
        buffer = PairBuffer(world.catalog, ShadowSettings(flush_interval_s=0.001), metrics, lambda key: True)
        window = shadow_pairs.WINDOW_PAIRS
        buffer.add(pairs(*range(window)))
        buffer.add(replace(pair, version=3, shadow_score=-pair.score) for pair in pairs(*range(window)))
        running = asyncio.create_task(buffer.run())
        labels = {"model": "m", "version": "2"}
        await until(lambda: metrics.registry.get_sample_value("rm_shadow_pearson", labels) is not None)
        assert metrics.registry.get_sample_value("rm_shadow_pearson", labels) == pytest.approx(-1.0)
        running.cancel()


async def test_scores_that_never_differ_have_no_gauge_of_their_shift(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        await start(world)
        metrics = Metrics()
        buffer = PairBuffer(world.catalog, ShadowSettings(flush_interval_s=0.001), metrics, lambda key: True)
        labels = {"model": "m", "version": "2"}
        buffer.add(pairs(*range(50)))
        running = asyncio.create_task(buffer.run())
        await until(lambda: metrics.registry.get_sample_value("rm_shadow_shift_std", labels) is not None)
        # Of 0.1 rounding leaves a trace of deviation.
        buffer.add(replace(pair, score=0.1) for pair in pairs(*range(shadow_pairs.WINDOW_PAIRS)))
        await until(lambda: metrics.registry.get_sample_value("rm_shadow_pearson", labels) is None)
        assert metrics.registry.get_sample_value("rm_shadow_shift_std", labels) is None
        running.cancel()


# --- scores of late ---


@pytest.mark.parametrize("sizes", [(1,), (1, 2, 3), (5,) * 10])
def test_the_first_scores_count_alike(sizes: Sequence[int]) -> None:
    recent = RecentScores()
    scores: list[float] = []
    for size in sizes:
        part = [float(len(scores) + place) for place in range(size)]
        recent.add(part)
        scores += part
    mean = sum(scores) / len(scores)
    std = (sum((score - mean) ** 2 for score in scores) / len(scores)) ** 0.5
    assert recent.mean == pytest.approx(mean, rel=0.05, abs=0.1)
    assert recent.std == pytest.approx(std, rel=0.05)


def test_old_scores_fade() -> None:
    recent = RecentScores()
    recent.add([100.0] * 1000)
    for _ in range(100):
        recent.add([1.0, 3.0] * 50)
    assert recent.mean == pytest.approx(2.0, abs=0.02)
    assert recent.std == pytest.approx(1.0, abs=0.7)


def test_scores_at_the_end_of_the_floats_are_counted_too() -> None:
    recent = RecentScores()
    recent.add([1.7e308, 1.7e308, -1.7e308])
    recent.add([-1.7e308])
    assert math.isfinite(recent.mean)
    assert math.isfinite(recent.std)
