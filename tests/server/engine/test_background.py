"""Work that nobody waits for: its place in the queue, its bounds, and that callers do not notice it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import fake_versions as fake
import pytest
from fake_versions import items, outcomes, running_engine, until

from rm_server.engine.background import BackgroundQueue, background_budget_tokens
from rm_server.engine.engine import Engine
from rm_server.engine.waiting import Waiting
from rm_server.errors import InternalError, QueueFull, VersionNotLoaded, WorkerFailed

A, B = ("a", 1), ("b", 1)
LIVE, SHADOW = ("m", 1), ("m", 2)


class Item(Waiting):
    def __init__(self, name: str, num_tokens: int = 10) -> None:
        super().__init__(num_tokens)
        self.name = name


def queue_of(max_items: int = 100, max_tokens: int = 10_000, crowded_share: float = 0.1) -> BackgroundQueue[Item]:
    return BackgroundQueue(
        max_items=max_items, max_tokens=max_tokens, max_batch_tokens=1000, crowded_share=crowded_share
    )


def offer(queue: BackgroundQueue[Item], names: str, key: tuple[str, int] = A, filled_share: float = 0.0) -> None:
    queue.offer(key, [Item(name) for name in names], filled_share=filled_share, now=0.0)


def take(queue: BackgroundQueue[Item], tokens_per_s: float = 10_000.0) -> str:
    taken = queue.next_batch(lambda key: tokens_per_s, 100, lambda key: True)
    return "" if taken is None else "".join(item.name for item in taken[1])


@pytest.mark.parametrize(
    ("filled_share", "stays"), [(0.0, True), (0.1, True), (0.11, False), (1.0, False), (2.0, False)]
)
def test_all_of_it_goes_where_callers_have_too_much_waiting(filled_share: float, stays: bool) -> None:
    queue = queue_of(crowded_share=0.1)
    offer(queue, "abc")
    dropped = "".join(item.name for item in queue.make_way(filled_share))
    assert (dropped, take(queue)) == (("", "abc") if stays else ("abc", ""))


@pytest.mark.parametrize(
    ("waiting", "filled_share", "coming", "is_taken"),
    [
        ("", 0.0, "a" * 5, True),
        ("a", 0.0, "b" * 4, True),
        ("a", 0.0, "b" * 5, False),
        ("", 0.0, "a" * 6, True),  # larger than the bounds, and nothing waits
        ("", 0.11, "a", False),
    ],
)
def test_a_call_is_taken_as_a_whole_or_not(waiting: str, filled_share: float, coming: str, is_taken: bool) -> None:
    queue = queue_of(max_items=5)
    offer(queue, waiting)
    if is_taken:
        offer(queue, coming, filled_share=filled_share)
    else:
        with pytest.raises(QueueFull):
            offer(queue, coming, filled_share=filled_share)
    assert queue.num_items == len(waiting) + is_taken * len(coming)


@pytest.mark.parametrize(
    ("tokens_per_s", "expected"), [(1.0, 64), (6_400.0, 64), (10_000.0, 100), (50_000.0, 500), (1e9, 1000)]
)
def test_a_batch_lasts_about_ten_milliseconds(tokens_per_s: float, expected: int) -> None:
    assert background_budget_tokens(tokens_per_s, 1000) == expected


def test_a_batch_is_of_the_speed_of_its_version_and_versions_take_turns() -> None:
    queue = queue_of(max_items=200)
    offer(queue, "a" * 100, A)
    offer(queue, "b" * 100, B)
    speeds = {A: 10_000.0, B: 20_000.0}
    sizes: dict[tuple[str, int], set[int]] = {A: set(), B: set()}
    while (taken := queue.next_batch(speeds.__getitem__, 100, lambda key: True)) is not None:
        sizes[taken[0]].add(len(taken[1]))
        if all(sizes.values()):
            break
    # Items have 10 tokens.
    assert sizes == {A: {10}, B: {20}}
    assert queue.num_items > 0


# --- in the engine ---


async def load(engine: Engine, folder: Path, key: tuple[str, int], **options: Any) -> Path:
    version = folder / f"{key[0]}{key[1]}"
    await engine.load(key, version, fake.make_version(version, **options), "fp32")
    return version


async def held(engine: Engine, folder: Path) -> asyncio.Future[Any]:
    """An item that keeps the only worker busy until the gate opens."""
    before = len(fake.noted(folder))
    (future,) = engine.submit(LIVE, items([fake.WAIT]))
    await until(lambda: len(fake.noted(folder)) > before)
    return future


async def test_scores_are_right_and_neither_cached_nor_counted(tmp_path: Path) -> None:
    async with running_engine() as engine:
        await load(engine, tmp_path, LIVE)
        shadow = await load(engine, tmp_path, SHADOW, factor=0.5)
        before = len(fake.noted(shadow))
        for _ in range(2):
            assert await outcomes(engine.submit_background(SHADOW, items([1, 2], [4]))) == [1.5, 2.0]
        assert len(fake.noted(shadow)) == before + 2
        assert engine.num_scored_items == 0
        # Nor does a caller of the shadow's own version meet a score from the background.
        assert await outcomes(engine.submit(SHADOW, items([1, 2]))) == [1.5]
        assert len(fake.noted(shadow)) == before + 3


async def test_callers_go_first_whenever_they_came(tmp_path: Path) -> None:
    async with running_engine(max_batch_items=1) as engine:
        folder = await load(engine, tmp_path, LIVE)
        await load(engine, tmp_path, SHADOW)
        order: list[str] = []
        busy = await held(engine, folder)
        for name, futures in (
            ("background", engine.submit_background(SHADOW, items([1]))),
            ("caller", engine.submit(LIVE, items([2], [3]))),
            ("background", engine.submit_background(SHADOW, items([4]))),
            ("caller", engine.submit(LIVE, items([5], [6]), run="another", priority=-5)),
        ):
            for future in futures:
                future.add_done_callback(lambda _, name=name: order.append(name))  # type: ignore[misc]
        fake.open_gate(folder)
        await busy
        await until(lambda: len(order) == 6)
        assert order == ["caller"] * 4 + ["background"] * 2


async def test_background_work_goes_first_under_load_and_callers_get_their_scores(tmp_path: Path) -> None:
    async with running_engine(max_queued_items=20, crowded_share=0.2) as engine:
        folder = await load(engine, tmp_path, LIVE)
        await load(engine, tmp_path, SHADOW)
        busy = await held(engine, folder)
        background = engine.submit_background(SHADOW, items([1], [2], [3]))
        some = engine.submit(LIVE, items(*[[number] for number in range(1, 5)]))
        assert not engine.is_crowded
        assert not any(future.done() for future in background)
        more = engine.submit(LIVE, items([9]))
        assert engine.is_crowded
        assert all(future.cancelled() for future in background)
        with pytest.raises(QueueFull):
            engine.submit_background(SHADOW, items([1]))
        fake.open_gate(folder)
        assert await outcomes([busy, *some, *more]) == [fake.WAIT / 2, 0.5, 1.0, 1.5, 2.0, 4.5]
        assert await outcomes(engine.submit_background(SHADOW, items([8]))) == [4.0]


async def test_a_batch_that_fails_is_not_tried_again_in_halves(tmp_path: Path) -> None:
    async with running_engine() as engine:
        await load(engine, tmp_path, LIVE)
        shadow = await load(engine, tmp_path, SHADOW)
        before = len(fake.noted(shadow))
        assert await outcomes(engine.submit_background(SHADOW, items([1], [fake.BAD], [2]))) == [InternalError] * 3
        assert len(fake.noted(shadow)) == before + 1
        assert await outcomes(engine.submit(LIVE, items([2]))) == [1.0]


async def test_a_worker_that_dies_of_it_fails_no_caller(tmp_path: Path) -> None:
    async with running_engine(workers=1) as engine:
        await load(engine, tmp_path, LIVE)
        await load(engine, tmp_path, SHADOW)
        background = engine.submit_background(SHADOW, items([fake.ALWAYS_KILL]))
        await asyncio.sleep(0)  # it is sent at the end of this turn of the loop
        callers = engine.submit(LIVE, items([2], [4]))
        assert await outcomes(background) == [WorkerFailed]
        assert await outcomes(callers) == [1.0, 2.0]


async def test_unloading_a_shadow_does_not_wait_for_its_turn(tmp_path: Path) -> None:
    async with running_engine() as engine:
        folder = await load(engine, tmp_path, LIVE)
        await load(engine, tmp_path, SHADOW)
        busy = await held(engine, folder)
        background = engine.submit_background(SHADOW, items([1]))
        unloading = asyncio.create_task(engine.unload(SHADOW))
        await until(lambda: background[0].done())
        assert background[0].cancelled()
        with pytest.raises(VersionNotLoaded):
            engine.submit_background(SHADOW, items([1]))
        fake.open_gate(folder)
        await asyncio.wait_for(unloading, 60)
        await busy


async def test_stopping_does_not_wait_for_it(tmp_path: Path) -> None:
    async with running_engine() as engine:
        folder = await load(engine, tmp_path, LIVE)
        await load(engine, tmp_path, SHADOW)
        busy = await held(engine, folder)
        (background,) = engine.submit_background(SHADOW, items([1]))
        stopping = asyncio.create_task(engine.stop(drain_s=60))
        await until(background.cancelled)
        fake.open_gate(folder)
        await stopping
        assert busy.result().value == fake.WAIT / 2
