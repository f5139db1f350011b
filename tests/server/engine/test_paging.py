"""Who makes room, as a table; and versions that go and come back in a server with room for two."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fake_versions as fake
import pytest
from fake_versions import until
from fake_world import BY, World, running_world

from rm_server.backends.footprint import Footprint
from rm_server.backends.interface import SharedMemory
from rm_server.engine.lifecycle import Step, next_steps, served_labels
from rm_server.engine.paging import Resident, choose_to_go, room_from
from rm_server.errors import DeadlineExceeded, NonFiniteScore, OutOfMemory, RmError, VersionInUse
from rm_server.registry import shadows
from rm_server.registry.records import Arm, Split, VersionKey

BASE = SharedMemory("base", 100)
A, B, C, D = (("m", number) for number in (1, 2, 3, 4))


def resident(
    key: VersionKey, own: int, used: float, *, stays: bool = False, shares: bool = False, **options: Any
) -> Resident:
    return Resident(key, own, used, not stays, BASE if shares else None, **options)


@pytest.mark.parametrize(
    ("residents", "missing", "expected"),
    [
        ([], 0, []),
        ([], 1, None),
        ([resident(A, 10, 1)], 0, []),
        ([resident(A, 10, 1)], 10, [A]),
        ([resident(A, 10, 1)], 11, None),
        ([resident(A, 10, 1, stays=True)], 1, None),
        ([resident(A, 10, 2), resident(B, 10, 1)], 5, [B]),
        ([resident(A, 10, 2), resident(B, 10, 1, stays=True)], 5, [A]),
        ([resident(A, 10, 2), resident(B, 10, 1)], 15, [B, A]),
        # The small one alone would be in vain, and with the large one superfluous.
        ([resident(A, 1, 1), resident(B, 50, 2), resident(C, 50, 3)], 40, [B]),
        # A base goes with its last adapter only.
        ([resident(A, 1, 1, shares=True), resident(B, 1, 2, shares=True)], 50, [A, B]),
        ([resident(A, 1, 1, shares=True), resident(B, 1, 2, shares=True, stays=True)], 50, None),
        ([resident(A, 1, 1, shares=True), resident(B, 1, 2, shares=True, stays=True)], 1, [A]),
        ([resident(A, 1, 1, shares=True), resident(B, 60, 2)], 101, [A]),
        # Measured when another worker was up, it is the same base.
        ([resident(A, 1, 1, shares=True), Resident(B, 1, 2, False, SharedMemory("base", 200))], 50, None),
        # Now is 100.
        ([resident(A, 10, 1, is_busy=True), resident(B, 10, 2)], 5, [B]),
        ([resident(A, 10, 1, is_busy=True)], 5, None),
        ([resident(A, 10, 1, stays_until=101.0), resident(B, 10, 2, stays_until=100.0)], 5, [B]),
        ([resident(A, 10, 1, stays_until=101.0)], 5, None),
    ],
)
def test_the_least_recently_used_go_and_none_in_vain(
    residents: list[Resident], missing: int, expected: list[VersionKey] | None
) -> None:
    assert choose_to_go(residents, missing, 100.0) == expected


@pytest.mark.parametrize(
    ("residents", "missing", "expected"),
    [
        ([], 1, None),
        ([resident(A, 10, 1)], 10, 100.0),
        ([resident(A, 10, 1)], 11, None),
        # Whoever is busy will be done, and whoever came just now has stayed long enough.
        ([resident(A, 10, 1, is_busy=True)], 10, 100.0),
        ([resident(A, 10, 1, stays_until=107.0)], 10, 107.0),
        ([resident(A, 10, 1, stays_until=107.0), resident(B, 10, 1, stays_until=103.0)], 10, 103.0),
        ([resident(A, 10, 1, stays_until=107.0), resident(B, 10, 1, stays_until=103.0)], 20, 107.0),
        ([resident(A, 10, 1, stays_until=107.0), resident(B, 10, 1, is_busy=True)], 10, 100.0),
        # Whoever is needed stays.
        ([resident(A, 10, 1, stays=True, is_busy=True), resident(B, 10, 1, stays_until=103.0)], 20, None),
        ([resident(A, 1, 1, shares=True, is_busy=True), resident(B, 1, 2, shares=True, stays_until=104.0)], 50, 104.0),
    ],
)
def test_when_there_will_be_room(residents: list[Resident], missing: int, expected: float | None) -> None:
    assert room_from(residents, missing, 100.0) == expected


def test_what_is_paged_out_is_left_alone_and_keeps_its_label() -> None:
    assert next_steps({A}, {A: "PAGED_OUT"}) == []
    assert next_steps({A}, {A: "PAGED_OUT", B: "READY"}) == [Step("unload", B)]
    labels = {("m", "stable"): 1}
    assert served_labels(labels, {("m", "stable"): 2}, ready={A, B}) == labels


# --- a server with room for two fake versions, of 1000 bytes each ---


@asynccontextmanager
async def small_world(folder: Path, min_stay_s: float = 0.0, **settings: Any) -> AsyncIterator[World]:
    limit_mb = 2500 / 1024 / 1024
    async with running_world(
        folder, memory_limit_mb=limit_mb, estimate=lambda *_: Footprint(1000), min_stay_s=min_stay_s, **settings
    ) as world:
        yield world


async def loaded(world: World, *factors: float) -> list[VersionKey]:
    keys = []
    for factor in factors:
        keys.append(await world.register(factor))
        await world.versions.load(keys[-1], None, **BY)
    return keys


async def score(world: World, key: VersionKey, *ids: int) -> float:
    await world.versions.pager.bring_back(key, None)
    return await world.score(key, *ids)


def pages(world: World, direction: str) -> float:
    return world.metrics.registry.get_sample_value("rm_pages_total", {"model": "m", "direction": direction}) or 0.0


async def test_the_least_recently_used_makes_room_and_comes_back(tmp_path: Path) -> None:
    async with small_world(tmp_path) as world:
        one, two = await loaded(world, 1, 2)
        assert await world.score(one, 3) == 3
        (three,) = await loaded(world, 3)
        assert [world.state(key) for key in (one, two, three)] == ["READY", "PAGED_OUT", "READY"]
        memory = {key: world.versions.state_of(key).memory_bytes for key in (one, two, three)}
        assert memory == {one: 1000, two: 0, three: 1000}
        assert await score(world, two, 5) == 10
        assert [world.state(key) for key in (one, two, three)] == ["PAGED_OUT", "READY", "READY"]
        assert (pages(world, "out"), pages(world, "in")) == (2, 1)
        # What is wanted stays wanted, and nobody else brings it back.
        await world.versions.refresh()
        assert one in world.versions.wanted
        assert world.state(one) == "PAGED_OUT"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities for threads")
async def test_what_comes_back_for_a_request_gives_way_to_nobody(tmp_path: Path) -> None:
    async with small_world(tmp_path, workers=1) as world:
        one, two, three = await loaded(world, 1, 2, 3)
        assert await score(world, one, 3) == 3
        usual = os.getpriority(os.PRIO_PROCESS, 0)
        gave_way = [[value > usual for value in fake.noted(world.files(key), "niceness")] for key in (one, two, three)]
        assert gave_way == [[False, False], [True], [True]]  # there was nobody to give way to when the first one came


async def test_who_asks_at_once_waits_for_one_load(tmp_path: Path) -> None:
    async with small_world(tmp_path) as world:
        one, _, _ = await loaded(world, 1, 2, 3)
        assert await asyncio.gather(*(score(world, one, number) for number in range(5))) == [0, 1, 2, 3, 4]
        assert pages(world, "in") == 1


async def test_a_version_that_is_needed_or_busy_stays(tmp_path: Path) -> None:
    async with small_world(tmp_path) as world:
        one, two = await loaded(world, 1, 2)
        world.versions.add_guard(lambda key: "a run has it." if key == one else None)
        with world.engine.use(two):
            with pytest.raises(OutOfMemory, match=r"m@3 needs 0\.0 MiB.*Loaded are: m@1 0\.0 MiB, m@2 0\.0 MiB"):
                await loaded(world, 3)
            assert [world.state(key) for key in (one, two)] == ["READY", "READY"]
        (four,) = await loaded(world, 4)
        assert [world.state(key) for key in (one, two, four)] == ["READY", "PAGED_OUT", "READY"]


async def test_a_shadow_stays(tmp_path: Path) -> None:
    async with small_world(tmp_path) as world:
        one, two = await loaded(world, 1, 2)
        shadows.set_shadow(world.catalog, *one, 0.5, "me")
        await world.versions.refresh()
        await loaded(world, 3)
        assert [world.state(key) for key in (one, two)] == ["READY", "PAGED_OUT"]
        with pytest.raises(VersionInUse):
            await world.versions.unload(one, True, **BY)


async def test_who_asks_waits_until_others_are_done(tmp_path: Path) -> None:
    async with small_world(tmp_path) as world:
        one, two, three = await loaded(world, 1, 2, 3)
        with world.engine.use(two):
            with world.engine.use(three):
                asked = asyncio.ensure_future(score(world, one, 7))
                with pytest.raises(DeadlineExceeded, match=r"m@1 was out of memory, .*\(m@2, m@3\) was busy until"):
                    await world.versions.pager.bring_back(one, asyncio.get_running_loop().time() + 0.01)
                assert not asked.done()
                assert [world.state(key) for key in (one, two, three)] == ["PAGED_OUT", "READY", "READY"]
            assert await asked == 7
            assert [world.state(key) for key in (one, two, three)] == ["READY", "READY", "PAGED_OUT"]


async def test_what_can_never_make_room_is_not_waited_for(tmp_path: Path) -> None:
    async with small_world(tmp_path) as world:
        one, two, three = await loaded(world, 1, 2, 3)
        world.versions.add_guard(lambda key: "a run has it." if key in (two, three) else None)
        with world.engine.use(two), pytest.raises(OutOfMemory, match="m@1 needs") as refused:
            await world.versions.pager.bring_back(one, None)
        assert refused.value.retry_after_s
        assert world.state(one) == "PAGED_OUT"


async def test_two_that_do_not_fit_together_are_not_loaded_in_turns_all_the_time(tmp_path: Path) -> None:
    async with small_world(tmp_path, min_stay_s=3600) as world:
        one, two, three, four = await loaded(world, 1, 2, 3, 4)
        assert [await score(world, key, 7) for key in (one, two)] == [7, 14]
        for _ in range(3):
            deadline = asyncio.get_running_loop().time() + 60
            with pytest.raises(
                OutOfMemory, match=r"m@3 is out of memory.*engine\.min_stay_s.*Try again in \d"
            ) as refused:
                await world.versions.pager.bring_back(three, deadline)
            assert 3000 < (refused.value.retry_after_s or 0) <= 3600
            assert [await score(world, key, 7) for key in (one, two)] == [7, 14]
        assert (pages(world, "out"), pages(world, "in")) == (4, 2)
        # Whoever loads by name is not made to wait.
        await world.versions.load(four, None, **BY)
        assert [world.state(key) for key in (one, two, three, four)] == ["PAGED_OUT", "READY", "PAGED_OUT", "READY"]


async def test_they_take_turns_that_are_longer(tmp_path: Path) -> None:
    async with small_world(tmp_path, min_stay_s=0.02) as world:
        keys = await loaded(world, 1, 2, 3, 4)
        for _ in range(2):
            assert await asyncio.gather(*(score(world, key, 7) for key in keys)) == [7, 14, 21, 28]


async def test_who_comes_while_it_goes_waits_for_its_return(tmp_path: Path) -> None:
    async with small_world(tmp_path) as world:
        one, two = await loaded(world, 1, 2)
        three = await world.register(3)
        with world.engine.use(two):
            computing = asyncio.ensure_future(world.score(two, fake.WAIT))  # the worker unloads after that
            await fake.until(lambda: fake.noted(world.files(two))[-1:] == [1])
            coming = asyncio.ensure_future(world.versions.load(three, None, **BY))
            await fake.until(lambda: world.state(one) == "DRAINING")
            assert world.versions.pager.is_away(one)
            back = asyncio.ensure_future(score(world, one, 7))
            await asyncio.sleep(0)
            assert not back.done()
            fake.open_gate(world.files(two))
            assert await computing == 2 * fake.WAIT
            await coming
            assert await back == 7
        assert [world.state(key) for key in (one, two, three)] == ["READY", "READY", "PAGED_OUT"]


async def test_a_deadline_ends_the_waiting_and_not_the_load(tmp_path: Path) -> None:
    async with small_world(tmp_path) as world:
        one = await world.register(1, waits=True)
        fake.open_gate(world.files(one))
        await world.versions.load(one, None, **BY)
        await loaded(world, 2, 3)
        (world.files(one) / "gate").unlink()
        with pytest.raises(DeadlineExceeded, match="m@1 was out of memory"):
            await world.versions.pager.bring_back(one, asyncio.get_running_loop().time() + 0.01)
        assert world.state(one) == "LOADING"
        fake.open_gate(world.files(one))
        assert await score(world, one, 7) == 7


async def test_unloading_and_damage_end_the_way_back(tmp_path: Path) -> None:
    async with small_world(tmp_path) as world:
        one, two, _, _ = await loaded(world, 1, 2, 3, 4)
        await world.versions.unload(one, False, **BY)
        assert world.state(one) == "REGISTERED"
        assert not world.versions.pager.is_away(one)
        path = world.files(two) / "rules.json"
        path.chmod(0o644)
        path.write_text("{}")
        with pytest.raises(RmError, match="truncated"):
            await world.versions.pager.bring_back(two, None)
        assert world.state(two) == "FAILED"
        assert not world.versions.pager.is_away(two)


async def test_what_is_lost_on_its_way_out_comes_back(tmp_path: Path) -> None:
    async with small_world(tmp_path) as world:
        (one,) = await loaded(world, 1)
        with world.engine.use(one):
            going = asyncio.ensure_future(world.versions._deployment.page_out(one))
            await until(lambda: world.state(one) == "DRAINING")
            world.engine._lost(one, NonFiniteScore("as if a new worker could not load it"))
        await going
        assert world.state(one) == "PAGED_OUT"
        assert await score(world, one, 3) == 3


async def test_what_a_label_names_is_not_unloaded_while_it_is_paged_out(tmp_path: Path) -> None:
    async with small_world(tmp_path) as world:
        one, *_ = await loaded(world, 1)
        await world.versions.set_label("m", "stable", 1, **BY)
        await loaded(world, 2, 3)
        assert world.state(one) == "PAGED_OUT"
        with pytest.raises(VersionInUse, match="m@1 is named by the label stable"):
            await world.versions.unload(one, False, **BY)
        assert await score(world, one, 7) == 7
        await loaded(world, 4, 5)
        assert world.state(one) == "PAGED_OUT"
        await world.versions.unload(one, True, **BY)
        assert world.state(one) == "REGISTERED"
        assert world.catalog.history("m")[0].detail == "forced, although named by the label stable"


async def test_what_shadows_by_another_server_s_word_comes_back_by_itself(tmp_path: Path) -> None:
    async with small_world(tmp_path) as world:
        one, two, three = await loaded(world, 1, 2, 3)
        assert world.state(one) == "PAGED_OUT"
        shadows.set_shadow(world.elsewhere, *one, 0.5, "somebody")
        await fake.until(lambda: world.state(one) == "READY")
        assert sorted(world.state(key) for key in (two, three)) == ["PAGED_OUT", "READY"]


async def test_what_another_process_no_longer_wants_is_forgotten(tmp_path: Path) -> None:
    async with small_world(tmp_path) as world:
        one, *_ = await loaded(world, 1, 2, 3)
        world.elsewhere.set_wanted(*one, False, "somebody")
        await fake.until(lambda: world.state(one) == "REGISTERED")


async def test_who_waits_for_one_on_its_way_out_does_not_look_all_the_time(tmp_path: Path) -> None:
    asked: list[int] = []

    def estimate(*_: object) -> Footprint:
        asked.append(1)
        return Footprint(1000)

    limit_mb = 2500 / 1024 / 1024
    async with running_world(tmp_path, memory_limit_mb=limit_mb, estimate=estimate, min_stay_s=0.0) as world:
        one, two, three = await loaded(world, 1, 2, 3)
        with world.engine.use(three), world.engine.use(two):
            unloading = asyncio.ensure_future(world.versions.unload(two, False, **BY))
            await fake.until(lambda: world.state(two) == "DRAINING")
            waiting = asyncio.ensure_future(score(world, one, 7))
            await asyncio.sleep(0.1)
            before = len(asked)
            await asyncio.sleep(0.5)
            assert len(asked) - before < 10
            assert world.state(one) == "PAGED_OUT"
        await unloading
        assert await waiting == 7


# --- while one makes room, others take what was to go next ---


class MakingRoom:
    """Of `keys`, the last takes the room of two; the second and third are to go, and the second cannot until `go_on`.

    `spare` is a version that is not loaded.
    """

    def __init__(self, world: World) -> None:
        self.world = world

    async def begin(self) -> None:
        self.spare = await self.world.register(5)
        self.keys = [*await loaded(self.world, 1, 2, 3), await self.world.register(9)]
        # The worker unloads when it is done with this.
        self._computing = asyncio.ensure_future(self.world.score(self.keys[0], fake.WAIT))
        await fake.until(lambda: fake.noted(self.world.files(self.keys[0]))[-1:] == [1])
        self.coming = asyncio.ensure_future(self.world.versions.load(self.keys[3], None, **BY))
        await fake.until(lambda: self.world.state(self.keys[1]) == "DRAINING")

    async def go_on(self) -> None:
        fake.open_gate(self.world.files(self.keys[0]))
        await self._computing


@asynccontextmanager
async def making_room(folder: Path) -> AsyncIterator[MakingRoom]:
    def estimate(folder: Path, *_: object) -> Footprint:
        return Footprint(2000 if json.loads((folder / "rules.json").read_text())["factor"] == 9 else 1000)

    limit_mb = 3500 / 1024 / 1024
    async with running_world(folder, memory_limit_mb=limit_mb, estimate=estimate, min_stay_s=0.0) as world:
        making = MakingRoom(world)
        await making.begin()
        yield making


async def test_what_a_run_took_meanwhile_stays(tmp_path: Path) -> None:
    async with making_room(tmp_path) as making:
        taken = making.keys[2]
        making.world.versions.add_guard(lambda key: "a run has it." if key == taken else None)
        await making.go_on()
        await making.coming
        states = [making.world.state(key) for key in making.keys]
        assert states == ["PAGED_OUT", "PAGED_OUT", "READY", "READY"], "another one went instead"


async def test_what_is_unloaded_by_hand_meanwhile_is_not_taken_for_paged_out(tmp_path: Path) -> None:
    async with making_room(tmp_path) as making:
        world, going = making.world, making.keys[2]
        unloading = asyncio.ensure_future(world.versions.unload(going, False, **BY))
        await fake.until(lambda: world.state(going) == "DRAINING")
        await making.go_on()
        await unloading
        assert world.state(going) == "REGISTERED"
        # It came in time, or says what to do.
        await asyncio.wait({making.coming}, timeout=60)
        assert making.coming.exception() is None or isinstance(making.coming.exception(), OutOfMemory)


async def test_what_a_split_takes_meanwhile_stays_and_nobody_waits_for_ever(tmp_path: Path) -> None:
    async with making_room(tmp_path) as making:
        world, taken = making.world, making.keys[2]
        split = Split("m", (Arm("a", taken[1], 1.0), Arm("b", making.spare[1], 1.0)), "s", datetime.now(UTC))
        dividing = asyncio.ensure_future(world.versions.set_split(split, load=True, **BY))
        await fake.until(lambda: world.state(making.spare) == "LOADING")
        await making.go_on()
        _, waiting = await asyncio.wait({making.coming, dividing}, timeout=60)
        assert not waiting
        assert dividing.exception() is None
        assert [world.state(key) for key in (taken, making.spare)] == ["READY", "READY"]
