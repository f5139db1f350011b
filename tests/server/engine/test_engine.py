"""What the engine does, the same whether a thread or worker processes compute."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import fake_versions as fake
import pytest
from fake_versions import items, outcomes, running_engine

from rm_server.backends.items import EncodedItem
from rm_server.engine.batcher import batch_budget_tokens
from rm_server.engine.engine import Engine
from rm_server.errors import (
    ConstantOutput,
    DeadlineExceeded,
    Draining,
    EmptyItem,
    GoldenMismatch,
    InternalError,
    NonFiniteScore,
    OutOfMemory,
    QueueFull,
    RmError,
    VersionInUse,
    VersionNotLoaded,
    WeightsMismatch,
)
from rm_server.registry.manifest import GoldenExample, Manifest

KEY = ("m", 1)


async def load(engine: Engine, folder: Path, key: tuple[str, int] = KEY, **options: Any) -> None:
    await engine.load(key, folder, fake.make_version(folder, **options), "fp32")


# --- scores ---


async def test_scores_items_in_order(tmp_path: Path, workers: int) -> None:
    async with running_engine(workers=workers) as engine:
        await load(engine, tmp_path)
        with engine.use(KEY) as version:
            assert version.precision == "fp32"
            assert engine.memory.by_version() == {KEY: 1000 * max(1, workers)}
            encoded = await engine.encode(KEY, [((1, 2), (3,)), ("a", ""), ("a", "b")])
            assert isinstance(encoded[1], EmptyItem)
            good = [item for item in encoded if isinstance(item, EncodedItem)]
            assert await outcomes(engine.submit(KEY, good)) == [3.0, (97 + 98) / 2]
        assert engine.num_scored_items == 2


async def test_many_items_come_back_to_whom_they_belong(tmp_path: Path, workers: int) -> None:
    async with running_engine(workers=workers, max_batch_tokens=64) as engine:
        await load(engine, tmp_path)
        calls = [[[number, n % 7 + 1] * (n % 5 + 1) for n in range(20)] for number in range(30)]
        futures = [engine.submit(KEY, items(*call), run=f"run {n % 3}") for n, call in enumerate(calls)]
        for call, scores in zip(calls, [await outcomes(part) for part in futures], strict=True):
            assert scores == [sum(ids) / 2 for ids in call]


async def test_long_content_is_encoded_beside_the_loop_in_order(tmp_path: Path) -> None:
    async with running_engine(encode_threads=3) as engine:
        await load(engine, tmp_path)
        texts = [chr(65 + number) * 400 for number in range(10)]
        encoded = await engine.encode(KEY, [("x", text) for text in texts] + [("x", "")])
        assert [item.ids[-1] for item in encoded[:-1] if isinstance(item, EncodedItem)] == list(range(65, 75))
        assert isinstance(encoded[-1], EmptyItem)


async def test_an_encoder_that_breaks_fails_its_item_alone(tmp_path: Path) -> None:
    async with running_engine() as engine:
        await load(engine, tmp_path)
        broken, good = await engine.encode(KEY, [((), (0,)), ((), (1,))])
        assert isinstance(broken, InternalError)
        assert isinstance(good, EncodedItem)


@pytest.mark.parametrize(
    ("bad", "error"),
    [(fake.NAN, NonFiniteScore), (fake.BAD, InternalError), (fake.NEVER_FITS, OutOfMemory)],
)
async def test_a_bad_item_does_not_fail_its_neighbours(
    tmp_path: Path, workers: int, bad: int, error: type[RmError]
) -> None:
    async with running_engine(workers=workers) as engine:
        await load(engine, tmp_path)
        futures = engine.submit(KEY, items([1, 1], [2, 2], [bad], [4, 4], [5, 5]))
        assert await outcomes(futures) == [1.0, 2.0, error, 4.0, 5.0]


async def test_a_batch_that_does_not_fit_into_memory_is_halved(tmp_path: Path, workers: int) -> None:
    async with running_engine(workers=workers) as engine:
        await load(engine, tmp_path)
        assert await outcomes(engine.submit(KEY, items([2], [4], [fake.TOO_LARGE], [6]))) == [1, 2, 501.5, 3]


# --- batches ---


async def test_an_idle_engine_begins_at_once_and_the_next_batch_fills_meanwhile(tmp_path: Path) -> None:
    async with running_engine() as engine:
        await load(engine, tmp_path)
        loaded = len(fake.noted(tmp_path))
        first = engine.submit(KEY, items([fake.WAIT]))
        await fake.until(lambda: len(fake.noted(tmp_path)) > loaded)
        # One by one, while the first batch computes.
        later = []
        for number in range(5):
            later += engine.submit(KEY, items([number]))
            await asyncio.sleep(0)
        assert engine.queue_stats.items == 5
        fake.open_gate(tmp_path)
        await outcomes(first + later)
        assert fake.noted(tmp_path)[loaded:] == [1, 5]


async def test_calls_that_come_together_share_a_batch(tmp_path: Path) -> None:
    async with running_engine() as engine:
        await load(engine, tmp_path)
        loaded = len(fake.noted(tmp_path))
        futures = [future for number in range(4) for future in engine.submit(KEY, items([number], [number, 9]))]
        await outcomes(futures)
        assert fake.noted(tmp_path)[loaded:] == [8]


@pytest.mark.parametrize(
    ("shares_up_to", "expected"),
    [
        # A group costs 10 + 3 * 3 tokens: a batch of 38 holds two.
        (100, [6, 6]),
        # Its items take no part in sharing, or there is none: 26 tokens of 38 are two items.
        (12, [2] * 6),
        (0, [2] * 6),
    ],
)
async def test_a_prompt_that_is_computed_once_takes_its_part_of_a_batch_once(
    tmp_path: Path, shares_up_to: int, expected: list[int]
) -> None:
    async with running_engine(max_batch_tokens=38) as engine:
        fake.make_version(tmp_path, shares_up_to=shares_up_to, factor=1.0)
        await engine.load(KEY, tmp_path, Manifest("sequence_classification"), "fp32")
        loaded = len(fake.noted(tmp_path))
        first = engine.submit(KEY, items([fake.WAIT]))
        await fake.until(lambda: len(fake.noted(tmp_path)) > loaded)
        groups = [[[prompt] * 10 + [number] * 3 for number in (1, 2, 3)] for prompt in range(100, 104)]
        later = [future for group in groups for future in engine.submit(KEY, items(*group))]
        fake.open_gate(tmp_path)
        assert (await outcomes(first + later))[1:] == [sum(item) for group in groups for item in group]
        assert fake.noted(tmp_path)[loaded + 1 :] == expected


async def test_a_full_batch_waits_in_the_pipe_of_a_busy_worker(tmp_path: Path) -> None:
    async with running_engine(max_batch_tokens=10) as engine:
        await load(engine, tmp_path)
        first = engine.submit(KEY, items([fake.WAIT]))
        await asyncio.sleep(0)
        later = engine.submit(KEY, items([1] * 6, [2] * 6, [3] * 6))
        await asyncio.sleep(0)
        # One of three is in the pipe: a batch of 10 tokens has room for one.
        assert engine.queue_stats.items == 2
        fake.open_gate(tmp_path)
        assert await outcomes(first + later) == [fake.WAIT / 2, 3, 6, 9]


async def test_the_pipe_is_filled_shortly_before_the_worker_is_done(tmp_path: Path) -> None:
    async with running_engine(max_batch_tokens=1000) as engine:
        await load(engine, tmp_path)
        # At the guessed rate of 10 000 tokens a second, this one should take a tenth.
        first = engine.submit(KEY, items([fake.WAIT] * 1000))
        await asyncio.sleep(0)
        later = engine.submit(KEY, items([1] * 1000, [2] * 1000))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert engine.queue_stats.items == 2
        await fake.until(lambda: engine.queue_stats.items == 1)
        assert not first[0].done()
        fake.open_gate(tmp_path)
        assert await outcomes(later) == [500, 1000]


@pytest.mark.parametrize(
    ("waiting_tokens", "num_idle", "expected"),
    [(100, 1, 512), (100, 2, 512), (3000, 1, 3000), (3000, 2, 1500), (9000, 2, 4096), (3001, 2, 1501), (3000, 0, 3000)],
)
def test_idle_workers_share_what_waits(waiting_tokens: int, num_idle: int, expected: int) -> None:
    assert batch_budget_tokens(waiting_tokens, num_idle, 4096) == expected


# --- what nobody wants ---


async def test_cancelled_items_are_never_computed(tmp_path: Path, workers: int) -> None:
    async with running_engine(workers=min(workers, 1)) as engine:
        await load(engine, tmp_path)
        loaded = len(fake.noted(tmp_path))
        first = engine.submit(KEY, items([fake.WAIT]))
        await fake.until(lambda: len(fake.noted(tmp_path)) > loaded)
        later = engine.submit(KEY, items([1], [2], [3], [4]))
        for future in later[1:]:
            future.cancel()
        await asyncio.sleep(0)
        assert engine.queue_stats.items == 1
        fake.open_gate(tmp_path)
        assert await outcomes([*first, later[0]]) == [fake.WAIT / 2, 0.5]
        assert fake.noted(tmp_path)[loaded:] == [1, 1]


async def test_items_whose_deadline_passed_are_never_computed(tmp_path: Path, workers: int) -> None:
    async with running_engine(workers=min(workers, 1)) as engine:
        await load(engine, tmp_path)
        loaded = len(fake.noted(tmp_path))
        now = asyncio.get_running_loop().time
        first = engine.submit(KEY, items([fake.WAIT]))
        await fake.until(lambda: len(fake.noted(tmp_path)) > loaded)
        late = engine.submit(KEY, items([1], [2]), deadline=now() + 0.005)
        patient = engine.submit(KEY, items([3]), deadline=now() + 600)
        deadline = now() + 0.01
        await fake.until(lambda: now() > deadline)
        fake.open_gate(tmp_path)
        assert await outcomes([*first, *late, *patient]) == [fake.WAIT / 2, DeadlineExceeded, DeadlineExceeded, 1.5]
        assert fake.noted(tmp_path)[loaded:] == [1, 1]


async def test_a_full_queue_refuses_at_once_and_recovers(tmp_path: Path) -> None:
    async with running_engine(max_queued_items=3) as engine:
        await load(engine, tmp_path)
        first = engine.submit(KEY, items([fake.WAIT]))
        await asyncio.sleep(0)
        waiting = engine.submit(KEY, items([1], [2], [3]))
        with pytest.raises(QueueFull) as refused:
            engine.submit(KEY, items([4]))
        assert refused.value.retry_after_s
        fake.open_gate(tmp_path)
        assert await outcomes(first + waiting) == [fake.WAIT / 2, 0.5, 1.0, 1.5]
        assert await outcomes(engine.submit(KEY, items([4]))) == [2.0]


# --- the result cache ---


async def test_the_same_item_is_computed_once(tmp_path: Path, workers: int) -> None:
    async with running_engine(workers=workers) as engine:
        await load(engine, tmp_path)
        loaded = len(fake.noted(tmp_path))
        # Twice in a call, in two calls at once, and once more when it is done.
        together = [*engine.submit(KEY, items([5], [5], [6])), *engine.submit(KEY, items([5]))]
        assert await outcomes(together) == [2.5, 2.5, 3.0, 2.5]
        assert await outcomes(engine.submit(KEY, items([5], [6]))) == [2.5, 3.0]
        assert sum(fake.noted(tmp_path)[loaded:]) == 2
        assert engine.num_scored_items == 6


@pytest.mark.parametrize(("run", "priority"), [("light", 0), ("heavy", 1)])
async def test_the_same_item_far_back_in_a_queue_is_not_waited_for(tmp_path: Path, run: str, priority: int) -> None:
    async with running_engine(max_batch_tokens=400) as engine:
        await load(engine, tmp_path)
        loaded = len(fake.noted(tmp_path))
        first = engine.submit(KEY, items([fake.WAIT]), run="heavy")
        await asyncio.sleep(0)
        heavy = engine.submit(KEY, items(*([number] * 400 for number in range(1, 41))), run="heavy")
        (light,) = engine.submit(KEY, items([40] * 400), run=run, priority=priority)
        (other,) = engine.submit(KEY, items([40] * 400), run=run, priority=priority)
        answered: list[asyncio.Future[Any]] = []
        for future in (*heavy, light, other):
            future.add_done_callback(answered.append)
        fake.open_gate(tmp_path)
        assert await outcomes([*first, *heavy, light, other]) == [
            *(fake.WAIT / 2, *(200.0 * number for number in range(1, 41))),
            *(8000.0, 8000.0),
        ]
        # Whose turn comes first answers for all, and nothing is computed twice.
        assert {answered.index(light), answered.index(other), answered.index(heavy[-1])} < set(range(12))
        assert sum(fake.noted(tmp_path)[loaded:]) == 1 + 40
        assert engine.queue_stats.items == 0


async def test_the_same_item_at_a_worker_is_waited_for(tmp_path: Path) -> None:
    async with running_engine() as engine:
        await load(engine, tmp_path)
        loaded = len(fake.noted(tmp_path))
        heavy = engine.submit(KEY, items([fake.WAIT]), run="heavy")
        await fake.until(lambda: len(fake.noted(tmp_path)) > loaded)
        light = engine.submit(KEY, items([fake.WAIT]), run="light")
        assert engine.queue_stats.items == 0
        fake.open_gate(tmp_path)
        assert await outcomes([*heavy, *light]) == [fake.WAIT / 2] * 2
        assert fake.noted(tmp_path)[loaded:] == [1]


async def test_the_cache_can_be_bypassed(tmp_path: Path) -> None:
    async with running_engine() as engine:
        await load(engine, tmp_path)
        loaded = len(fake.noted(tmp_path))
        for _ in range(2):
            assert await outcomes(engine.submit(KEY, items([5], [5]), use_cache=False)) == [2.5, 2.5]
        assert await outcomes(engine.submit(KEY, items([5]))) == [2.5]
        assert sum(fake.noted(tmp_path)[loaded:]) == 5


async def test_what_failed_is_not_kept(tmp_path: Path) -> None:
    async with running_engine() as engine:
        await load(engine, tmp_path)
        for _ in range(2):
            assert await outcomes(engine.submit(KEY, items([fake.NAN]))) == [NonFiniteScore]


async def test_a_caller_who_goes_takes_nothing_from_those_who_wait_for_the_same(tmp_path: Path) -> None:
    async with running_engine() as engine:
        await load(engine, tmp_path)
        first = engine.submit(KEY, items([fake.WAIT]))
        await asyncio.sleep(0)
        (leader,), (follower,) = engine.submit(KEY, items([5])), engine.submit(KEY, items([5]))
        assert engine.queue_stats.items == 1
        leader.cancel()
        fake.open_gate(tmp_path)
        assert await outcomes([*first, follower]) == [fake.WAIT / 2, 2.5]


async def test_who_can_wait_longer_does_not_depend_on_who_cannot(tmp_path: Path) -> None:
    async with running_engine() as engine:
        await load(engine, tmp_path)
        first = engine.submit(KEY, items([fake.WAIT]))
        await asyncio.sleep(0)
        now = asyncio.get_running_loop().time()
        hasty = engine.submit(KEY, items([5]), deadline=now)
        patient = engine.submit(KEY, items([5]))
        fake.open_gate(tmp_path)
        assert await outcomes([*first, *hasty, *patient]) == [fake.WAIT / 2, DeadlineExceeded, 2.5]


async def test_scores_of_another_load_are_never_mixed_in(tmp_path: Path) -> None:
    async with running_engine() as engine:
        await load(engine, tmp_path)
        assert await outcomes(engine.submit(KEY, items([5]))) == [2.5]
        await engine.unload(KEY)
        manifest = fake.make_version(tmp_path, Manifest("sequence_classification"), factor=2.0)
        await engine.load(KEY, tmp_path, manifest, "bf16")
        assert await outcomes(engine.submit(KEY, items([5]))) == [10.0]


# --- loading ---


@pytest.mark.parametrize(
    ("options", "golden", "refusal"),
    [
        ({"lacks_head": True}, 3.0, WeightsMismatch),
        ({"is_constant": True}, 7.0, ConstantOutput),
        ({"gives_nan": True}, 3.0, NonFiniteScore),
        ({"factor": 0.6}, 3.0, GoldenMismatch),
        ({"needs_memory": True}, 3.0, OutOfMemory),
        ({"unknown_option": True}, 3.0, InternalError),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_a_broken_version_is_refused_and_leaves_nothing(
    tmp_path: Path,
    workers: int,
    options: dict[str, Any],
    golden: float,
    refusal: type[RmError],
) -> None:
    async with running_engine(workers=workers) as engine:
        await load(engine, tmp_path / "good")
        manifest = Manifest("sequence_classification", golden=(GoldenExample((1, 2), (3,), golden),))
        fake.make_version(tmp_path / "bad", manifest, **options)
        with pytest.raises(refusal):
            await engine.load(("m", 2), tmp_path / "bad", manifest, "fp32")
        assert list(engine.loaded) == [KEY]
        with pytest.raises(VersionNotLoaded):
            engine.use(("m", 2))
        assert await outcomes(engine.submit(KEY, items([1, 2]))) == [1.5]
        # Each worker has the good one, and now the other one in a good form: nothing of the attempt is left.
        gc.collect()
        await load(engine, tmp_path / "bad", ("m", 2))
        assert set(fake.noted(tmp_path / "bad", "live")[-max(1, workers) :]) == {2}


async def test_loading_again_changes_nothing(tmp_path: Path) -> None:
    async with running_engine() as engine:
        manifest = fake.make_version(tmp_path)
        first = await engine.load(KEY, tmp_path, manifest, "fp32")
        assert await engine.load(KEY, tmp_path, manifest, "fp32") is first
        with pytest.raises(VersionInUse, match="another precision"):
            await engine.load(KEY, tmp_path, manifest, "bf16")


async def test_loads_of_one_version_at_once_make_one(tmp_path: Path) -> None:
    async with running_engine() as engine:
        manifest = fake.make_version(tmp_path)
        made = await asyncio.gather(*(engine.load(KEY, tmp_path, manifest, "fp32") for _ in range(3)))
        assert made == [engine.loaded[KEY]] * 3
        assert fake.noted(tmp_path, "live") == [1]


async def test_a_load_goes_on_when_its_caller_goes(tmp_path: Path) -> None:
    async with running_engine() as engine:
        manifest = fake.make_version(tmp_path)
        caller = asyncio.ensure_future(engine.load(KEY, tmp_path, manifest, "fp32"))
        await asyncio.sleep(0)
        caller.cancel()
        await fake.until(lambda: KEY in engine.loaded)
        assert await outcomes(engine.submit(KEY, items([2]))) == [1.0]


async def test_loads_run_beside_the_computing(tmp_path: Path, workers: int) -> None:
    async with running_engine(workers=min(workers, 1)) as engine:
        await load(engine, tmp_path / "1")
        busy = engine.submit(KEY, items([fake.WAIT]))
        await load(engine, tmp_path / "2", ("m", 2))
        assert not busy[0].done()
        fake.open_gate(tmp_path / "1")
        assert await outcomes(busy) == [fake.WAIT / 2]
        loading = asyncio.ensure_future(load(engine, tmp_path / "3", ("m", 3), waits=True))
        await fake.until(lambda: bool(fake.noted(tmp_path / "3", "waits")))
        assert await outcomes(engine.submit(KEY, items([2]))) == [1.0]
        assert not loading.done()
        fake.open_gate(tmp_path / "3")
        await loading


# --- unloading ---


async def test_an_unload_waits_for_requests_and_items_under_way(tmp_path: Path, workers: int) -> None:
    async with running_engine(workers=workers) as engine:
        await load(engine, tmp_path)
        with engine.use(KEY):
            unloading = asyncio.ensure_future(engine.unload(KEY))
            await asyncio.sleep(0)
            assert KEY not in engine.loaded
            with pytest.raises(VersionNotLoaded):
                engine.use(KEY)
            # The request that was here before may still do everything.
            (encoded,) = await engine.encode(KEY, [((1,), (fake.WAIT,))])
            assert isinstance(encoded, EncodedItem)
            futures = engine.submit(KEY, [encoded])
        await asyncio.sleep(0)
        assert not unloading.done()
        fake.open_gate(tmp_path)
        assert await outcomes(futures) == [(1 + fake.WAIT) / 2]
        await unloading
        with pytest.raises(VersionNotLoaded):
            engine.submit(KEY, items([1]))
        await load(engine, tmp_path)
        assert set(fake.noted(tmp_path, "live")) == {1}


async def test_unloading_what_is_not_loaded_is_an_error() -> None:
    async with running_engine() as engine:
        with pytest.raises(VersionNotLoaded):
            await engine.unload(KEY)


async def test_two_unloads_at_once_are_one(tmp_path: Path) -> None:
    async with running_engine() as engine:
        await load(engine, tmp_path)
        await asyncio.gather(engine.unload(KEY), engine.unload(KEY))
        assert not engine.loaded


# --- stopping ---


async def test_a_stop_lets_what_is_under_way_finish(tmp_path: Path, workers: int) -> None:
    async with running_engine(workers=workers) as engine:
        await load(engine, tmp_path)
        with engine.use(KEY):
            stopping = asyncio.ensure_future(engine.stop(drain_s=600))
            await asyncio.sleep(0)
            with pytest.raises(Draining):
                engine.use(KEY)
            with pytest.raises(Draining):
                await engine.load(("m", 2), tmp_path, Manifest("rules"), "fp32")
            assert await outcomes(engine.submit(KEY, items([1, 2]))) == [1.5]
        await stopping
        with pytest.raises(Draining):
            engine.submit(KEY, items([1]))


async def test_a_stop_without_patience_fails_what_is_left(tmp_path: Path, workers: int) -> None:
    async with running_engine(workers=workers) as engine:
        await load(engine, tmp_path)
        computing = engine.submit(KEY, items([fake.WAIT]))
        await asyncio.sleep(0)
        waiting = engine.submit(KEY, items([1], [2]))
        await engine.stop(drain_s=0)
        assert await outcomes(computing) == [Draining]
        assert set(await outcomes(waiting)) <= {Draining, 0.5, 1.0}
        fake.open_gate(tmp_path)
