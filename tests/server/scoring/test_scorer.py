"""The path of a request, over fake versions: a score is the sum of the ids times the version's factor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import fake_versions as fake
import pytest
from fake_versions import items, until
from fake_world import BY, World, running_world

from rm_server.backends.footprint import Footprint
from rm_server.config import LimitSettings, RunSettings
from rm_server.errors import (
    ArtifactUnreadable,
    DeadlineExceeded,
    Draining,
    EmptyItem,
    InvalidSelector,
    InvalidTokenIds,
    LabelNotFound,
    ModelNotFound,
    NonFiniteScore,
    NotCalibrated,
    OutOfMemory,
    QueueFull,
    RequestTooLarge,
    RmError,
    VersionChanged,
    VersionNotFound,
    VersionNotLoaded,
    WorkerFailed,
)
from rm_server.metrics import Metrics
from rm_server.registry.records import CalibrationRecord
from rm_server.registry.run_records import Lease
from rm_server.registry.runs import assign_run
from rm_server.scoring.composites import Composites
from rm_server.scoring.runs import Runs
from rm_server.scoring.scorer import ItemAnswer, ScoreAnswer, ScoreCall, Scorer


class Service:
    """What the edges talk to."""

    def __init__(self, world: World) -> None:
        self.engine, self.versions, self.catalog = world.engine, world.versions, world.catalog
        self._world = world
        self.metrics = Metrics()
        self.runs = Runs(world.versions, world.catalog, RunSettings(), self.metrics)
        limits = LimitSettings(max_items_per_request=50)
        composites = Composites(world.engine, world.artifacts, lambda: world.versions.snapshot)
        self._scorer = Scorer(world.engine, world.versions, self.runs, limits, self.metrics, composites)

    @property
    def folder(self) -> Path:
        """Where version 1 is, and keeps its notes."""
        return self._world.files(("m", 1))

    async def score(self, selector: str, *groups: Any, deadline: float | None = None, **options: Any) -> ScoreAnswer:
        return await self._scorer.score(ScoreCall(selector, groups, **options), deadline)


@asynccontextmanager
async def running_service(folder: Path, **settings: Any) -> AsyncIterator[Service]:
    """Version 1 with factor 0.5 is loaded and stable; version 2 with factor 2 is neither."""
    async with running_world(folder, **settings) as world:
        await world.register(0.5)
        await world.register(2.0)
        await world.versions.set_label("m", "stable", 1, load=True, **BY)
        yield Service(world)


def values(answer: ScoreAnswer) -> list[float | type[RmError]]:
    return [_outcome(item) for item in answer.items]


def _outcome(item: ItemAnswer) -> float | type[RmError]:
    assert (item.value is None) is (item.error is not None)
    return type(item.error) if item.value is None and item.error is not None else item.value or 0.0


# --- answers ---


async def test_scores_all_completions_of_all_groups_in_order(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        answer = await service.score("m@stable", ((1,), [(2,), (3,)]), ((10,), []), ((20,), [(1, 1)]))
        assert values(answer) == [1.5, 2.0, 11.0]
        record = service.versions.snapshot.versions["m", 1]
        assert (answer.model, answer.version, answer.digest, answer.label) == ("m", 1, record.digest, "stable")
        assert (answer.transform, answer.calibration, answer.arm) == ("raw_logit", None, None)
        assert [item.num_tokens for item in answer.items] == [2, 2, 3]
        timings = answer.timings
        assert 0 < timings.compute_s < timings.total_s
        assert 0 < timings.tokenize_s < timings.total_s
        assert timings.queue_s > 0


async def test_a_bad_item_fails_alone(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        completions = [(2,), (), (-1,), (fake.NAN,), (4,)]
        answer = await service.score("m@1", ((), completions))
        assert values(answer) == [1.0, EmptyItem, InvalidTokenIds, NonFiniteScore, 2.0]
        assert [item.num_tokens for item in answer.items] == [1, 0, 0, 1, 1]
        assert answer.label is None
        exposition = service.metrics.exposition("")[0].decode()
        assert 'rm_items_total{model="m",reason="ok",version="1"} 2.0' in exposition
        assert 'rm_items_total{model="m",reason="empty_item",version="1"} 1.0' in exposition
        assert 'rm_tokens_total{model="m",version="1"} 2.0' in exposition


async def test_a_call_whose_items_are_all_bad_is_answered(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        assert values(await service.score("m", ((), [(), ()]))) == [EmptyItem, EmptyItem]


async def test_an_empty_call_is_answered_and_still_needs_a_version(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        answer = await service.score("m")
        assert (answer.items, answer.version) == ([], 1)
        with pytest.raises(ModelNotFound):
            await service.score("x")


async def test_calibrated_scores_name_their_calibration(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        with pytest.raises(NotCalibrated, match="m@1"):
            await service.score("m", ((), [(2,)]), calibrated=True)
        calibration = CalibrationRecord("c" * 64, gain=3.0, bias=1.0)
        service.catalog.set_calibration("m", 1, calibration, actor="me")
        await until(lambda: service.versions.snapshot.versions["m", 1].calibration is not None)
        answer = await service.score("m", ((), [(2,), (4,)]), calibrated=True)
        assert (values(answer), answer.calibration) == ([4.0, 7.0], calibration)
        raw = await service.score("m", ((), [(2,)]))
        assert (values(raw), raw.calibration) == ([1.0], None)


async def test_a_score_that_calibration_blows_up_is_an_error(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        service.catalog.set_calibration("m", 1, CalibrationRecord("c" * 64, gain=1e308, bias=0.0), actor="me")
        await until(lambda: service.versions.snapshot.versions["m", 1].calibration is not None)
        assert values(await service.score("m", ((), [(200,), (2,)]), calibrated=True)) == [NonFiniteScore, 1e308]


async def test_the_result_cache_is_used_unless_told_otherwise(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        loaded = len(fake.noted(service.folder))
        for bypass in (False, False, True):
            assert values(await service.score("m", ((), [(2,)]), bypass_cache=bypass)) == [1.0]
        assert fake.noted(service.folder)[loaded:] == [1, 1]


# --- runs ---


async def test_a_run_is_leased_counted_and_told_of_a_change(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        first = await service.score("m", ((), [(2,), (4,), ()]), run="r")
        await service.versions.set_label("m", "stable", 2, load=True, **BY)
        again = await service.score("m", ((), [(8,)]), run="r")
        assert (first.version, again.version, again.label) == (1, 1, None)
        (status,) = await service.runs.statuses()
        assert (status.run, status.items, status.tokens, status.score_mean) == ("r", 3, 3, 7 / 3)
        with pytest.raises(VersionChanged, match="m@2"):
            await service.score("m@stable", ((), [(2,)]), run="r", expected_digest=first.digest)
        assert values(await service.score("m", ((), [(2,)]), run="r", expected_digest=first.digest)) == [1.0]


async def test_a_call_that_is_refused_takes_no_lease(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        with pytest.raises(VersionChanged):
            await service.score("m", ((), [(2,)]), run="r", expected_digest="0" * 64)
        await service.versions.unload(("m", 1), True, **BY)
        with pytest.raises(VersionNotLoaded):
            await service.score("m", ((), [(2,)]), run="r")
        assert await service.runs.statuses() == []


# --- calls that fail as a whole ---


@pytest.mark.parametrize(
    ("selector", "error"),
    [
        ("no model", InvalidSelector),
        ("x", ModelNotFound),
        ("m@9", VersionNotFound),
        ("m@beta", LabelNotFound),
        ("m@2", VersionNotLoaded),
    ],
)
async def test_a_call_without_a_version_fails(tmp_path: Path, selector: str, error: type[RmError]) -> None:
    async with running_service(tmp_path) as service:
        with pytest.raises(error):
            await service.score(selector, ((), [(2,)]))


async def test_a_call_is_told_why_its_version_could_not_be_loaded(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        await service.score("m", ((), [(2,)]), run="r")
        await service.runs.end("r", "m")
        await service.versions.unload(("m", 1), True, **BY)
        (service.folder / "rules.json").unlink()
        with pytest.raises(ArtifactUnreadable) as refused:
            await service.versions.load(("m", 1), None, **BY)
        for selector in ("m", "m@1", "m@stable"):
            with pytest.raises(VersionNotLoaded, match="load it first") as told:
                await service.score(selector, ((), [(2,)]))
            assert refused.value.message in told.value.message
        with pytest.raises(VersionNotLoaded, match="'r' was given m@1") as told:
            await service.score("m", ((), [(2,)]), run="r")
        assert refused.value.message in told.value.message
        with pytest.raises(VersionNotLoaded) as told:
            await service.score("m@2", ((), [(2,)]))
        assert "failed" not in told.value.message, "nobody tried"


async def test_a_call_for_a_version_that_another_server_loaded_is_told_to_come_back_while_it_is_loaded_here(
    tmp_path: Path,
) -> None:
    async with running_world(tmp_path) as world:
        service, key = Service(world), await world.register(0.5, waits=True)
        with pytest.raises(VersionNotLoaded, match="load it first"):
            await service.score("m@1", ((), [(2,)]))
        world.elsewhere.set_wanted(*key, True, "somebody")
        world.elsewhere.set_label("m", "stable", 1, "somebody")
        await until(lambda: world.state(key) == "LOADING")
        for selector in ("m", "m@1", "m@stable"):
            with pytest.raises(Draining, match="m@1 is being loaded on this server; come back soon") as told:
                await service.score(selector, ((), [(2,)]))
            assert told.value.retry_after_s
        fake.open_gate(world.files(key))
        await until(lambda: world.state(key) == "READY")
        assert values(await service.score("m@stable", ((), [(2,)]))) == [1.0]


async def test_a_call_for_a_version_that_has_no_room_here_may_find_it_elsewhere_or_later(tmp_path: Path) -> None:
    limit_mb = 1500 / 1024 / 1024
    async with running_world(tmp_path, memory_limit_mb=limit_mb, estimate=lambda *_: Footprint(1000)) as world:
        service, one, two = Service(world), await world.register(0.5), await world.register(2.0)
        await world.versions.load(one, None, **BY)
        await world.versions.set_pin("other", one, **BY)  # so that it makes no room
        with pytest.raises(OutOfMemory):
            await world.versions.load(two, None, **BY)
        with pytest.raises(VersionNotLoaded, match="m@2 needs"):  # nobody wants it, so nothing is tried again
            await service.score("m@2", ((), [(2,)]))
        # Another server has room, loads it and gives it to a run.
        world.elsewhere.set_wanted(*two, True, "somebody")
        digest = world.versions.snapshot.versions[two].digest
        now = time.time()
        assign_run(world.elsewhere, Lease("r", *two, digest, None, 900.0, now, now + 900.0), None)
        await until(lambda: two in world.versions.snapshot.wanted)
        for selector, message in (
            ("m@2", "m@2 is not loaded on this server: m@2 needs"),
            ("m", "which the run 'r' has"),
        ):
            with pytest.raises(OutOfMemory, match=message) as told:
                await service.score(selector, ((), [(2,)]), run="r")
            assert told.value.retry_after_s


async def test_a_call_with_too_many_items_fails(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        assert len((await service.score("m", ((), [(2,)] * 50))).items) == 50
        with pytest.raises(RequestTooLarge, match="51 completions; at most 50"):
            await service.score("m", ((), [(2,)] * 50), ((), [(2,)]))


async def test_a_call_to_a_full_queue_fails(tmp_path: Path) -> None:
    async with running_service(tmp_path, max_queued_items=2) as service:
        busy = service.engine.submit(("m", 1), items([fake.WAIT]))
        await asyncio.sleep(0)
        waiting = service.engine.submit(("m", 1), items([1], [2]))
        with pytest.raises(QueueFull, match="2 items with 2 tokens wait already, and 1 for m@1 came"):
            await service.score("m", ((), [(0,)]))  # which the encoder would stumble over: it is not asked
        fake.open_gate(service.folder)
        await asyncio.gather(*busy, *waiting)
        assert values(await service.score("m", ((), [(3,)]))) == [1.5]


async def test_a_call_whose_deadline_has_passed_is_not_computed(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        loaded = len(fake.noted(service.folder))
        with pytest.raises(DeadlineExceeded, match="nothing was computed"):
            await service.score("m", ((), [(2,)]), deadline=asyncio.get_running_loop().time())
        assert len(fake.noted(service.folder)) == loaded


async def test_a_deadline_that_passes_meanwhile_ends_the_call_and_drops_what_waits(tmp_path: Path) -> None:
    async with running_service(tmp_path, max_batch_items=1) as service:
        folder = service.folder
        loaded = len(fake.noted(folder))
        deadline = asyncio.get_running_loop().time() + 0.05
        with pytest.raises(DeadlineExceeded):
            await service.score("m", ((), [(fake.WAIT,), (2,), (3,), (4,)]), deadline=deadline)
        fake.open_gate(folder)
        assert values(await service.score("m", ((), [(5,)]))) == [2.5]
        # The one that was computed, perhaps the one in the pipe, and the new one: never those that only waited.
        assert len(fake.noted(folder)) - loaded <= 3


async def test_a_caller_who_goes_takes_his_items_along(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        folder = service.folder
        loaded = len(fake.noted(folder))
        busy = service.engine.submit(("m", 1), items([fake.WAIT]))
        await until(lambda: len(fake.noted(folder)) == loaded + 1)
        caller = asyncio.ensure_future(service.score("m", ((), [(2,), (3,)])))
        await until(lambda: service.engine.queue_stats.items == 2)
        caller.cancel()
        await until(lambda: service.engine.queue_stats.items == 0)
        with pytest.raises(asyncio.CancelledError):
            await caller
        fake.open_gate(folder)
        await asyncio.gather(*busy)
        # Nobody holds the version any more.
        await service.versions.unload(("m", 1), True, **BY)
        assert len(fake.noted(folder)) == loaded + 1


async def test_a_call_that_no_worker_could_compute_fails_as_a_whole(tmp_path: Path) -> None:
    async with running_service(tmp_path, workers=1) as service:
        with pytest.raises(WorkerFailed):
            await service.score("m", ((), [(fake.ALWAYS_KILL,), ()]))
        assert values(await service.score("m", ((), [(2,)]))) == [1.0]


async def test_a_server_that_stops_says_so(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        loaded = len(fake.noted(service.folder))
        waiting = asyncio.ensure_future(service.score("m", ((), [(fake.WAIT,)])))
        await until(lambda: len(fake.noted(service.folder)) == loaded + 1)
        await service.engine.stop(drain_s=0)
        with pytest.raises(Draining):
            await waiting
        with pytest.raises(Draining):
            await service.score("m", ((), [(2,)]))
        fake.open_gate(service.folder)


# --- many at once ---


async def test_calls_at_once_get_their_own_scores(tmp_path: Path) -> None:
    async def one(service: Service, number: int, lengths: Sequence[int]) -> None:
        answer = await service.score("m", ((number,), [(1,) * length for length in lengths]), run=f"run-{number % 3}")
        assert values(answer) == [(number + length) / 2 for length in lengths]

    async with running_service(tmp_path, max_batch_tokens=100) as service:
        await asyncio.gather(*(one(service, number, range(1, number % 9 + 2)) for number in range(1, 100)))
