"""Runs and their leases over a real registry, with the clock in the test's hand."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_world import BY, Clock, World, running_world

from rm_server.config import RunSettings
from rm_server.errors import (
    InvalidRequest,
    ModelNotFound,
    NoDefaultVersion,
    RunNotFound,
    VersionChanged,
    VersionInUse,
    VersionNotLoaded,
)
from rm_server.metrics import Metrics
from rm_server.scoring import run_activity, run_status
from rm_server.scoring.routing import Route
from rm_server.scoring.run_status import RunStatus
from rm_server.scoring.runs import Runs
from rm_server.scoring.selector import parse


@asynccontextmanager
async def running_runs(folder: Path) -> AsyncIterator[tuple[World, Runs, Clock]]:
    """Versions 1 and 2 of m are loaded, and 1 is stable. Version 3 is not loaded."""
    clock = Clock()
    async with running_world(folder, clock=clock) as world:
        runs = Runs(world.versions, world.catalog, RunSettings(lease_s=900.0), Metrics(), clock=clock)
        for number in (1, 2, 3):
            await world.register(float(number))
            if number < 3:
                await world.versions.load(("m", number), None, **BY)
        await world.versions.set_label("m", "stable", 1, **BY)
        yield world, runs, clock


async def call(runs: Runs, selector: str, run: str) -> Route:
    """What the scorer does with a run."""
    if not runs.is_settled(parse(selector), run):
        await runs.settle(parse(selector), run, lambda route: None)
    route = runs.route(parse(selector), run)
    runs.keep(parse(selector), run)
    return route


async def test_a_run_keeps_its_version_while_the_label_moves(tmp_path: Path) -> None:
    async with running_runs(tmp_path) as (world, runs, _clock):
        lease, is_resumed = await runs.register("r", "m")
        assert (lease.key, lease.expires_at, is_resumed) == (("m", 1), 1900.0, False)
        await world.versions.set_label("m", "stable", 2, **BY)
        assert (await call(runs, "m", "r")).key == ("m", 1)
        assert (await call(runs, "m", "r")).label is None
        # Whoever follows the label follows it, lease or no lease.
        assert (await call(runs, "m@stable", "r")).key == ("m", 2)
        assert (await call(runs, "m", "other")).key == ("m", 2)
        assert (await call(runs, "m", "")).key == ("m", 2)
        again, is_resumed = await runs.register("r", "m")
        assert (again.key, is_resumed) == (("m", 1), True)
        moved, is_resumed = await runs.register("r", "m", move=True)
        assert (moved.key, is_resumed) == (("m", 2), False)
        moved, is_resumed = await runs.register("r", "m", move=True)
        assert (moved.key, is_resumed) == (("m", 2), True)  # it had that already


async def test_scoring_by_the_bare_name_takes_a_lease_and_renews_it(tmp_path: Path) -> None:
    async with running_runs(tmp_path) as (world, runs, clock):
        digest = world.versions.snapshot.versions["m", 1].digest
        assert await call(runs, "m", "r") == Route(("m", 1), digest, chosen_by="lease")
        await world.versions.set_label("m", "stable", 2, **BY)
        for _ in range(5):
            clock.now += 800
            assert (await call(runs, "m", "r")).key == ("m", 1)


async def test_a_run_has_its_version_after_a_pause_longer_than_its_lease(tmp_path: Path) -> None:
    async with running_runs(tmp_path) as (world, runs, clock):
        await runs.register("r", "m", lease_s=60.0)
        await world.versions.set_label("m", "stable", 2, **BY)
        clock.now += 1000
        assert (await call(runs, "m", "r")).key == ("m", 1)
        # With a lease as long as it had.
        with pytest.raises(VersionInUse):
            await world.versions.unload(("m", 1), True, **BY)
        clock.now += 60
        await world.versions.unload(("m", 1), False, **BY)
        with pytest.raises(VersionNotLoaded, match=r"'r' was given m@1, which is not loaded\..*`m@stable` say"):
            runs.route(parse("m"), "r")
        assert (await call(runs, "m@stable", "r")).key == ("m", 2)
        await runs.end("r", "m")
        assert (await call(runs, "m", "r")).key == ("m", 2)


async def test_a_leased_version_is_not_unloaded_until_the_lease_ends(tmp_path: Path) -> None:
    async with running_runs(tmp_path) as (world, runs, clock):
        for number in range(7):
            await call(runs, "m", f"r{number}")
        await world.versions.set_label("m", "stable", 2, **BY)
        with pytest.raises(VersionInUse, match="leases on it: r0, r1, r2, r3, r4 and 2 more"):
            await world.versions.unload(("m", 1), True, **BY)
        for number in range(6):
            await runs.end(f"r{number}", "m")
        with pytest.raises(VersionInUse, match="leases on it: r6"):
            await world.versions.unload(("m", 1), True, **BY)
        clock.now += 900
        await world.versions.unload(("m", 1), False, **BY)


async def test_a_run_that_comes_back_gets_its_version_or_an_error(tmp_path: Path) -> None:
    async with running_runs(tmp_path) as (world, runs, _clock):
        await runs.register("r", "m")
        await runs.end("r", "m")
        await world.versions.set_label("m", "stable", 2, **BY)
        assert (await runs.register("r", "m"))[0].key == ("m", 1)
        await runs.end("r", "m")
        await world.versions.unload(("m", 1), False, **BY)
        with pytest.raises(VersionNotLoaded, match="m@1, which is not loaded"):
            await runs.register("r", "m")
        assert (await runs.register("r", "m", move=True))[0].key == ("m", 2)


async def test_an_expected_digest_is_compared(tmp_path: Path) -> None:
    async with running_runs(tmp_path) as (world, runs, _clock):
        digests = {number: world.versions.snapshot.versions["m", number].digest for number in (1, 2)}
        assert (await runs.register("r", "m", expected_digest=digests[1]))[0].digest == digests[1]
        with pytest.raises(VersionChanged, match=digests[2]):
            await runs.register("r", "m", expected_digest=digests[2])
        with pytest.raises(VersionChanged):
            await runs.register("new", "m", expected_digest="0" * 64)
        assert [status.run for status in await runs.statuses()] == ["r"]


async def test_refuses_what_cannot_be(tmp_path: Path) -> None:
    async with running_runs(tmp_path) as (world, runs, _clock):
        for run in ("", "a b", "x" * 129, "ü"):
            with pytest.raises(InvalidRequest, match="cannot name a run"):
                await runs.register(run, "m")
        with pytest.raises(InvalidRequest, match="cannot name a run"):
            runs.route(parse("m"), "a b")
        for lease_s in (1.0, -5.0, 1e6, float("nan")):
            with pytest.raises(InvalidRequest, match="10 to 604800"):
                await runs.register("r", "m", lease_s=lease_s)
        with pytest.raises(InvalidRequest, match="bare name"):
            await runs.register("r", "m@stable")
        with pytest.raises(ModelNotFound):
            await runs.register("r", "x")
        with pytest.raises(RunNotFound):
            await runs.renew("r", "m")
        await world.versions.remove_label("m", "stable", **BY)
        with pytest.raises(NoDefaultVersion):
            await runs.register("r", "m")
        assert await runs.statuses() == []


async def test_a_lease_can_have_its_own_length(tmp_path: Path) -> None:
    async with running_runs(tmp_path) as (_world, runs, clock):
        assert (await runs.register("r", "m", lease_s=60.0))[0].expires_at == 1060.0
        clock.now += 50
        assert (await runs.renew("r", "m")).expires_at == 1110.0


async def test_says_which_version_the_lease_holds_and_which_scored_it_last(tmp_path: Path) -> None:
    async with running_runs(tmp_path) as (_world, runs, clock):
        runs.scored("r", await call(runs, "m", "r"), [1.0], 10)
        clock.now += 1
        runs.scored("r", await call(runs, "m@2", "r"), [1.0], 10)
        (status,) = await runs.statuses()
        assert (status.version, status.lease_version, status.lease_expires_at) == (2, 1, 1900.0)
        clock.now += 1000
        (status,) = await runs.statuses()
        assert (status.version, status.lease_version, status.lease_expires_at) == (2, None, None)


async def test_says_what_runs_there_are(tmp_path: Path) -> None:
    async with running_runs(tmp_path) as (_world, runs, clock):
        await runs.register("leased", "m")
        clock.now += 10
        route = await call(runs, "m@2", "follower")
        runs.scored("follower", route, [1.0, 3.0], 20)
        runs.scored("", route, [1.0], 20)
        first, second = await runs.statuses()
        assert (first.run, first.version, first.items, first.tokens) == ("follower", 2, 2, 20)
        assert (first.score_mean, first.score_std, first.last_seen, first.lease_expires_at) == (2.0, 1.0, 1010.0, None)
        assert (second.run, second.version, second.items, second.last_seen) == ("leased", 1, 0, 1000.0)
        assert (first.lease_version, second.lease_version) == (None, 1)
        assert second.lease_expires_at == 1900.0
        assert [status.run for status in await runs.statuses("m")] == ["follower", "leased"]
        assert await runs.statuses("n") == []


async def test_a_list_of_runs_however_long_is_put_together_beside_the_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def run_statuses(*known: Any) -> list[RunStatus]:
        threads.append(threading.current_thread())
        return run_status.run_statuses(*known)

    monkeypatch.setattr(run_activity, "run_statuses", run_statuses)
    async with running_runs(tmp_path) as (_world, runs, _clock):
        await runs.register("r", "m")
        assert [status.run for status in await runs.statuses()] == ["r"]
    assert len(threads) == 1
    assert threading.current_thread() not in threads


async def test_statistics_are_kept_whatever_hinders_their_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_runs(tmp_path) as (_world, runs, _clock):
        runs.scored("r", await call(runs, "m", "r"), [1.0, 2.0], 10)
        with monkeypatch.context() as hindered:
            hindered.setattr(run_activity, "write_activity", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await runs._activity.write(everything=True)
        await runs._activity.write(everything=True)
        (status,) = await runs.statuses()
        assert (status.items, status.score_mean) == (2, 1.5)


async def test_counts_whether_a_lease_is_new_kept_or_moved(tmp_path: Path) -> None:
    async with running_runs(tmp_path) as (world, runs, _clock):

        def given(version: int, change: str) -> float | None:
            labels = {"model": "m", "version": str(version), "change": change}
            return runs._metrics.registry.get_sample_value("rm_leases_given_total", labels)

        await call(runs, "m", "r")
        await runs.register("r", "m")
        assert (given(1, "new"), given(1, "kept"), given(1, "moved")) == (1, 1, None)
        await world.versions.set_label("m", "stable", 2, **BY)
        await runs.register("r", "m", move=True)
        await call(runs, "m", "other")
        assert (given(2, "new"), given(2, "kept"), given(2, "moved")) == (1, None, 1)
        assert (given(1, "new"), given(1, "kept")) == (1, 1)
