"""Runs are in the catalog: after a restart, and for two servers on one database, a run has the version it was given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_versions import until
from fake_world import BY, Clock, World, running_world
from postgresql import has_postgresql, postgresql, postgresql_url  # noqa: F401 – fixtures

from rm_server.config import RunSettings
from rm_server.errors import CatalogUnavailable, Draining, VersionChanged, VersionInUse, VersionNotFound
from rm_server.metrics import Metrics
from rm_server.registry.backup import back_up, restore
from rm_server.registry.records import Arm, RampPoint, Split
from rm_server.registry.run_records import Lease
from rm_server.registry.runs import assign_run, find_run, look
from rm_server.scoring.routing import Route
from rm_server.scoring.runs import Runs
from rm_server.scoring.selector import parse

DATABASES = [
    "sqlite",
    pytest.param(
        "postgresql",
        marks=pytest.mark.skipif(
            not has_postgresql(), reason="PostgreSQL is not installed: apt-get install postgresql"
        ),
    ),
]


@pytest.fixture(params=DATABASES)
def catalog_url(request: pytest.FixtureRequest) -> str:
    """Empty: the home's own file."""
    return str(request.getfixturevalue("postgresql_url")) if request.param == "postgresql" else ""


class Server(SimpleNamespace):
    """A server without its edges."""

    world: World
    runs: Runs

    async def call(self, selector: str, run: str) -> Route:
        """What the scorer does with a run."""
        if not self.runs.is_settled(parse(selector), run):
            await self.runs.settle(parse(selector), run, lambda route: None)
        route = self.runs.route(parse(selector), run)
        self.runs.keep(parse(selector), run)
        return route

    async def split(self, *arms: Arm) -> None:
        await self.world.versions.set_split(Split("m", arms, "", self.world.catalog._clock()), load=True, **BY)

    @contextmanager
    def catalog_away(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        def fail(*_: object) -> Any:
            raise CatalogUnavailable("away", retry_after_s=1.0)

        with monkeypatch.context() as patch:
            for way in ("reading", "writing"):
                patch.setattr(self.world.catalog.database, way, fail)
            yield


@asynccontextmanager
async def server(folder: Path, clock: Clock, url: str = "", **settings: Any) -> AsyncIterator[Server]:
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(running_world(folder, clock=clock, catalog_url=url))
        world.catalog._clock = lambda: datetime.fromtimestamp(clock.now, UTC)
        run_settings = RunSettings(**{"lease_s": 900.0} | settings)
        runs = Runs(world.versions, world.catalog, run_settings, Metrics(), clock=clock)
        yield Server(world=world, runs=runs)


async def deploy(one: Server, number: int = 3) -> None:
    """Versions 1 to ``number`` of m; 1 is stable, and all but the last are loaded."""
    for factor in range(1, number + 1):
        key = await one.world.register(float(factor))
        if factor < number:
            await one.world.versions.load(key, None, **BY)
    await one.world.versions.set_label("m", "stable", 1, **BY)


async def follow(server: Server, other: Server) -> None:
    """Waits until the server is where the other is."""
    await until(lambda: server.world.versions.snapshot.revision == other.world.catalog.revision())
    await until(lambda: all(server.world.state(key) == "READY" for key in server.world.versions.wanted))


async def test_a_run_has_its_version_after_a_restart_though_the_label_moved(tmp_path: Path, catalog_url: str) -> None:
    clock = Clock()
    async with server(tmp_path, clock, catalog_url) as one:
        await deploy(one)
        assert (await one.call("m", "r")).key == ("m", 1)
        await one.world.versions.set_label("m", "stable", 2, unload_previous=True, **BY)
    clock.now += 100
    async with server(tmp_path, clock, catalog_url) as two:
        # What the lease names was loaded at the start, though nothing else wants it.
        assert two.world.state(("m", 1)) == "READY"
        assert (await two.call("m", "r")).key == ("m", 1)
        assert (await two.call("m", "new")).key == ("m", 2)
        lease, is_resumed = await two.runs.register("r", "m")
        assert (lease.key, is_resumed) == (("m", 1), True)


async def test_a_run_whose_version_is_gone_is_refused(tmp_path: Path) -> None:
    clock = Clock()
    async with server(tmp_path, clock) as one:
        await deploy(one)
        await one.call("m", "r")
        await one.runs.end("r")
        await one.world.versions.set_label("m", "stable", 2, **BY)
        await one.world.versions.unload(("m", 1), False, **BY)
        await one.world.versions.delete(("m", 1), **BY)
        with pytest.raises(VersionNotFound, match="no version 1"):
            await one.runs.register("r", "m")
        # It ended; by the bare name it asks anew.
        assert (await one.call("m", "r")).key == ("m", 2)


async def test_servers_that_give_a_run_a_version_at_once_agree(tmp_path: Path, catalog_url: str) -> None:
    clock = Clock()
    async with server(tmp_path, clock, catalog_url) as one, server(tmp_path, clock, catalog_url) as two:
        await deploy(one)
        await follow(two, one)
        # They do not look at the catalog: one thinks that 2 is stable, the other that 1 is.
        for each, stable in ((one, 2), (two, 1)):
            versions = each.world.versions
            versions._following._poll_s = 3600.0
            versions._following.served = replace(versions.snapshot, labels={("m", "stable"): stable})
        for number in range(20):
            run = f"run-{number}"
            routes = await asyncio.gather(*(each.call("m", run) for each in (one, two, one, two)))
            assert len({route.key for route in routes}) == 1, routes


async def test_a_run_that_moves_is_followed_by_the_other_server(tmp_path: Path, catalog_url: str) -> None:
    clock = Clock()
    async with server(tmp_path, clock, catalog_url) as one, server(tmp_path, clock, catalog_url) as two:
        await deploy(one)
        await follow(two, one)
        assert (await one.call("m", "r")).key == (await two.call("m", "r")).key == ("m", 1)
        await one.world.versions.set_label("m", "stable", 2, **BY)
        lease, _ = await one.runs.register("r", "m", move=True)
        assert lease.key == ("m", 2)
        await until(lambda: two.runs.route(parse("m"), "r").key == ("m", 2))
        await two.runs.end("r", "m")
        await until(lambda: not one.runs.is_settled(parse("m"), "r"))


async def test_who_cannot_wait_until_the_move_is_followed_looks_again(tmp_path: Path) -> None:
    clock = Clock()
    async with server(tmp_path, clock) as one, server(tmp_path, clock) as two:
        await deploy(one)
        await follow(two, one)
        await two.call("m", "r")
        two.world.versions._following._after_look.clear()
        await one.world.versions.set_label("m", "stable", 2, **BY)
        await one.runs.register("r", "m", move=True)
        assert two.runs.route(parse("m"), "r").key == ("m", 1)
        await two.runs.look_again(parse("m"), "r")
        assert two.runs.route(parse("m"), "r").key == ("m", 2)


async def test_a_move_that_could_not_be_read_is_read_when_the_catalog_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    async with server(tmp_path, clock) as one, server(tmp_path, clock) as two:
        await deploy(one)
        await follow(two, one)
        await two.call("m", "r")
        await until(lambda: two.runs._run_revision == look(two.world.catalog, clock.now).run_revision)
        two.world.versions._following._after_look.clear()
        await one.world.versions.set_label("m", "stable", 2, **BY)
        await one.runs.register("r", "m", move=True)
        seen = look(two.world.catalog, clock.now)
        with two.catalog_away(monkeypatch), pytest.raises(CatalogUnavailable):  # between one question and the next
            await two.runs._follow(seen)
        await two.runs._follow(seen)
        assert two.runs.route(parse("m"), "r").key == ("m", 2)


async def test_a_lease_keeps_its_version_on_every_server(tmp_path: Path, catalog_url: str) -> None:
    clock = Clock()
    async with server(tmp_path, clock, catalog_url) as one, server(tmp_path, clock, catalog_url) as two:
        await deploy(one)
        await follow(two, one)
        await one.call("m", "r")
        await one.world.versions.set_label("m", "stable", 2, **BY)
        with pytest.raises(VersionInUse, match=r"leases on it: r\."):
            await two.world.versions.unload(("m", 1), True, **BY)
        await one.runs.end("r", "m")
        await follow(two, one)
        await two.world.versions.unload(("m", 1), False, **BY)
        await until(lambda: one.world.state(("m", 1)) == "REGISTERED")
        # A lease on a version that is not loaded there loads it there.
        await one.world.versions.load(("m", 3), None, **BY)
        await follow(two, one)
        await one.world.versions.set_label("m", "stable", 3, **BY)
        await one.call("m", "s")
        await one.world.versions.set_label("m", "stable", 2, unload_previous=True, **BY)
        assert ("m", 3) in two.world.versions.wanted
        with pytest.raises(VersionInUse, match=r"leases on it: s\."):
            await one.world.versions.unload(("m", 3), True, **BY)
        one.world.catalog.set_wanted("m", 3, False, "me")
        with pytest.raises(VersionInUse, match="lease of the run s"):
            one.world.catalog.delete_version("m", 3, "me")


async def test_a_run_whose_version_is_still_being_loaded_here_is_told_to_come_back(tmp_path: Path) -> None:
    clock = Clock()
    async with server(tmp_path, clock) as one, server(tmp_path, clock) as two:
        two.world.versions._following._poll_s = 3600.0  # it shall not load before the gate is closed
        await deploy(one, 2)
        key = await one.world.register(7.0, waits=True)
        files = one.world.files(key)
        (files / "gate").touch()
        await one.world.versions.set_label("m", "stable", 3, load=True, **BY)
        (files / "gate").unlink()
        await one.call("m", "r")
        await two.world.versions._following._look()
        await until(lambda: two.world.state(key) == "LOADING")
        with pytest.raises(Draining, match="being loaded on this server") as caught:
            await two.call("m", "r")
        assert caught.value.retry_after_s
        (files / "gate").touch()
        await until(lambda: two.world.state(key) == "READY")
        assert (await two.call("m", "r")).key == key


async def test_while_the_catalog_is_away_known_runs_go_on_and_others_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    async with server(tmp_path, clock) as one:
        await deploy(one)
        await one.call("m", "known")
        with one.catalog_away(monkeypatch):
            assert (await one.call("m", "known")).key == ("m", 1)
            clock.now += 1000  # longer than its lease
            assert (await one.call("m", "known")).key == ("m", 1)
            assert (await one.runs.register("known", "m"))[0].expires_at == clock.now + 900
            for ask in (
                one.call("m", "new"),
                one.runs.register("new", "m"),
                one.runs.register("known", "m", move=True),
            ):
                with pytest.raises(CatalogUnavailable) as caught:
                    await ask
                assert caught.value.retry_after_s == 1.0
            assert (await one.call("m@stable", "new")).key == (await one.call("m@1", "new")).key == ("m", 1)
            one.runs.scored("known", one.runs.route(parse("m"), "known"), [1.0, 2.0], 10)
            with pytest.raises(CatalogUnavailable):
                await one.runs._activity.write(everything=True)
            assert one.world.versions.wanted  # it goes on serving what it has
            await until(lambda: one.world.versions.catalog_error is not None)
            assert one.world.metrics.registry.get_sample_value("rm_catalog_reachable") == 0
        await until(lambda: one.world.versions.catalog_error is None)
        assert one.world.metrics.registry.get_sample_value("rm_catalog_reachable") == 1
        assert (await one.call("m", "new")).key == ("m", 1)
        await one.runs.stop()
        known = find_run(one.world.catalog, "known", "m")
        assert known is not None
        assert known.expires_at == clock.now + 900
        (status,) = await one.runs.statuses("m", "known")
        assert (status.items, status.score_mean) == (2, 1.5)


async def test_signs_of_life_and_statistics_of_two_servers_come_together(tmp_path: Path, catalog_url: str) -> None:
    clock = Clock()
    async with server(tmp_path, clock, catalog_url) as one, server(tmp_path, clock, catalog_url) as two:
        await deploy(one)
        await follow(two, one)
        for each, scores in ((one, [1.0, 3.0]), (two, [5.0]), (one, [7.0])):
            clock.now += 300
            route = await each.call("m", "r")
            each.runs.scored("r", route, scores, 10 * len(scores))
        # What has not been written yet is known to the server itself.
        (status,) = await one.runs.statuses()
        assert (status.items, status.score_mean) == (3, pytest.approx(11 / 3))
        for each in (one, two):
            await each.runs.stop()
            await each.runs.stop()  # nothing is counted twice
        for each in (one, two):
            (status,) = await each.runs.statuses()
            assert (status.items, status.tokens, status.version_items) == (4, 40, 4)
            assert (status.score_mean, status.score_std) == (4.0, pytest.approx(5**0.5))
            assert (status.last_seen, status.lease_expires_at) == (clock.now, clock.now + 900)
            assert status.tokens_per_s > 0


async def test_runs_that_were_seen_longest_ago_are_forgotten(tmp_path: Path) -> None:
    clock = Clock()
    async with server(tmp_path, clock, max_known_runs=2) as one:
        await deploy(one)
        for run in ("ended", "expired", "leased"):
            route = await one.call("m", run)
            one.runs.scored(run, route, [1.0], 1)
            clock.now += 10
        await one.runs.stop()
        await one.runs._activity.forget()
        assert {status.run for status in await one.runs.statuses() if status.lease_expires_at} == {
            "ended",
            "expired",
            "leased",
        }
        await one.runs.end("ended")
        await one.runs._activity.forget()
        known = await one.runs.statuses()
        assert [status.run for status in known] == ["leased", "expired"]
        # A run that was forgotten asks anew.
        await one.world.versions.set_label("m", "stable", 2, **BY)
        async with server(tmp_path, clock) as two:
            assert (await two.call("m", "ended")).key == ("m", 2)


async def test_a_run_in_a_split_keeps_its_arm_across_servers_restarts_and_changes(
    tmp_path: Path, catalog_url: str
) -> None:
    clock = Clock()
    runs = [f"run-{number}" for number in range(30)]
    async with server(tmp_path, clock, catalog_url) as one:
        await deploy(one)
        await one.split(Arm("a", 1, 0.5), Arm("b", 2, 0.5))
        given = {run: await one.call("m", run) for run in runs}
        assert {route.arm for route in given.values()} == {"a", "b"}
        assert all((route.key[1] == 1) == (route.arm == "a") for route in given.values())
        # Another weight, another arm: who has a version keeps it.
        await one.split(Arm("a", 1, 0.1), Arm("b", 2, 0.1), Arm("c", 3, 0.8))
        assert {run: (await one.call("m", run)).arm for run in runs} == {run: given[run].arm for run in runs}
        assert {(await one.call("m", f"new-{run}")).arm for run in runs} >= {"c"}
    async with server(tmp_path, clock, catalog_url) as two:
        assert {run: (await two.call("m", run)).arm for run in runs} == {run: given[run].arm for run in runs}
        # Whoever asks to move stays in its arm, and gets the version that the arm has now.
        await two.split(Arm("a", 3, 0.5), Arm("b", 2, 0.5))
        moved, _ = await two.runs.register(runs[0], "m", move=True)
        assert moved.arm == given[runs[0]].arm
        assert moved.version == (3 if moved.arm == "a" else 2)
        for run in runs:
            await two.runs.end(run)
        with pytest.raises(VersionInUse, match="arm a"):
            await two.world.versions.unload(("m", 3), True, **BY)
        await two.world.versions.remove_split("m", **BY)
        assert (await two.call("m", "later")).arm is None


async def test_a_ramp_opens_an_arm_by_the_clock(tmp_path: Path) -> None:
    clock = Clock()
    async with server(tmp_path, clock) as one:
        await deploy(one)
        await one.split(Arm("a", 1, 1.0), Arm("b", 2, 0.0, (RampPoint(2000.0, 0.0), RampPoint(3000.0, 1e9))))
        assert {(await one.call("m", f"early-{number}")).arm for number in range(10)} == {"a"}
        clock.now = 3000.0
        assert {(await one.call("m", f"late-{number}")).arm for number in range(10)} == {"b"}
        assert (await one.call("m", "early-0")).arm == "a"


async def test_a_pin_is_for_one_run_and_when_it_asks_next(tmp_path: Path) -> None:
    clock = Clock()
    async with server(tmp_path, clock) as one:
        await deploy(one)
        await one.split(Arm("a", 1, 1.0))
        assert (await one.call("m", "r")).key == ("m", 1)
        for run in ("r", "s"):
            await one.world.versions.set_pin(run, ("m", 2), **BY)
        assert (await one.call("m", "r")).key == ("m", 1)
        assert (await one.call("m", "s")).key == ("m", 2)
        assert (await one.runs.register("r", "m", move=True))[0].key == ("m", 2)
        for run in ("r", "s"):
            await one.runs.end(run)
        with pytest.raises(VersionInUse, match="pinned"):
            await one.world.versions.unload(("m", 2), True, **BY)
        assert one.world.catalog.history("m")[0].action == "set_pin"
        await one.world.versions.remove_pin("r", "m", **BY)
        assert (await one.runs.register("r", "m", move=True))[0].key == ("m", 1)


async def test_a_restored_catalog_says_what_runs_have(tmp_path: Path, catalog_url: str) -> None:
    clock = Clock()
    async with server(tmp_path, clock, catalog_url) as one, server(tmp_path, clock, catalog_url) as two:
        await deploy(one)
        await follow(two, one)
        await one.call("m", "r")
        back_up(one.world.catalog, tmp_path / "backup.json")
        await one.world.versions.set_label("m", "stable", 2, **BY)
        assert (await one.runs.register("r", "m", move=True))[0].key == ("m", 2)
        assert (await two.call("m", "r")).key == ("m", 2)
        restore(one.world.catalog, tmp_path / "backup.json", "me", replaces=True)
        for each in (one, two):
            await until(lambda each=each: each.runs.route(parse("m"), "r").key == ("m", 1))  # type: ignore[misc]


async def test_a_digest_that_is_not_the_one_given_is_refused(tmp_path: Path) -> None:
    clock = Clock()
    async with server(tmp_path, clock) as one:
        await deploy(one)
        await one.call("m", "r")
        given = one.runs._leases.last("r", "m")
        assert given is not None
        one.runs._leases.put(replace(given, digest="0" * 64, revision=99), clock.now)
        clock.now += 901
        with pytest.raises(VersionChanged, match="move"):
            await one.call("m", "r")


async def test_what_another_server_gave_meanwhile_is_held_against_the_expected_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    async with server(tmp_path, clock) as one:
        await deploy(one)
        digests = {number: one.world.versions.snapshot.versions["m", number].digest for number in (1, 2)}
        elsewhere = Lease("r", "m", 2, digests[2], None, 900.0, clock.now, clock.now + 900.0)
        look_up = one.runs._look_up

        async def too_early(run: str, model: str) -> Lease | None:
            seen = await look_up(run, model)
            assign_run(one.world.elsewhere, elsewhere, seen)
            return seen

        monkeypatch.setattr(one.runs, "_look_up", too_early)
        with pytest.raises(VersionChanged, match=digests[2]):
            await one.runs.register("r", "m", expected_digest=digests[1])
