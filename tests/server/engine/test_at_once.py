"""Versions without weights: a little work is done at once, on the event loop; more goes to a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import fake_versions as fake
import pytest
from fake_versions import items, outcomes, running_engine

from rm_server.engine.engine import Engine
from rm_server.errors import InternalError, NonFiniteScore

KEY = ("m", 1)
MANY_TOKENS = [1] * 2000


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    async with running_engine(load_weightless="fake_versions:load_second_backend") as engine:
        await engine.load(KEY, tmp_path, fake.make_version(tmp_path), "fp32")
        yield engine


async def test_scores_are_there_when_submit_returns(engine: Engine) -> None:
    futures = engine.submit(KEY, items([1, 2], [3]))
    assert [future.result().value for future in futures] == [1.5, 1.5]


async def test_more_work_waits_for_a_worker(engine: Engine) -> None:
    futures = engine.submit(KEY, items(MANY_TOKENS))
    assert not futures[0].done()
    assert await outcomes(futures) == [1000.0]


async def test_a_bad_item_fails_alone(engine: Engine) -> None:
    futures = engine.submit(KEY, items([1], [fake.BAD], [fake.NAN], [2]))
    assert await outcomes(futures) == [0.5, InternalError, NonFiniteScore, 1.0]


async def test_the_same_item_again_comes_from_the_cache(engine: Engine, tmp_path: Path) -> None:
    await outcomes(engine.submit(KEY, items([5], [5])))
    await asyncio.sleep(0)
    computed = fake.noted(tmp_path)
    assert computed[-1] == 1
    assert [future.result().value for future in engine.submit(KEY, items([5]))] == [2.5]
    assert fake.noted(tmp_path) == computed


async def test_how_fast_it_is_says_nothing_of_the_queue(engine: Engine) -> None:
    await outcomes(engine.submit(KEY, items(MANY_TOKENS)))
    hint_s = engine._pool._queue.retry_after_s(1_000_000)
    for number in range(20):
        (future,) = engine.submit(KEY, items([1, number]), use_cache=False)
        assert future.done(), "it was done at once"
    assert engine._pool._queue.retry_after_s(1_000_000) == hint_s


async def test_nothing_holds_an_unload_back(engine: Engine) -> None:
    engine.submit(KEY, items([1]))
    await engine.unload(KEY)
    assert KEY not in engine.loaded
