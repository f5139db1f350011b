"""Versions that can share a batch do so when it is small: how much is taken in, and that each stays its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import fake_versions as fake
import pytest
from fake_versions import items, noted, outcomes, running_engine

from rm_server.engine.engine import Engine
from rm_server.engine.sharing import room_for_others
from rm_server.errors import DeadlineExceeded, InternalError, NonFiniteScore, WorkerFailed
from rm_server.metrics import Metrics
from rm_server.registry.manifest import Manifest

A, B, C, STRANGER = ("a", 1), ("b", 1), ("c", 1), ("stranger", 1)
FACTORS = {A: 1.0, B: 10.0, C: 100.0, STRANGER: 1000.0}


@pytest.mark.parametrize(
    ("num_tokens", "max_batch_tokens", "expected"),
    [
        (16, 4096, 240),
        (255, 4096, 1),
        (256, 4096, 0),
        (4000, 4096, 0),
        (16, 100, 84),
        (120, 100, 0),
    ],
)
def test_a_small_batch_is_filled_up(num_tokens: int, max_batch_tokens: int, expected: int) -> None:
    assert room_for_others(num_tokens, max_batch_tokens) == expected


@asynccontextmanager
async def family(folder: Path, **settings: Any) -> AsyncIterator[Engine]:
    """Three versions of one family, and a stranger."""
    async with running_engine(**settings) as engine:
        for key, factor in FACTORS.items():
            name = "" if key == STRANGER else "family"
            plain = Manifest("sequence_classification")
            fake.make_version(folder / key[0], factor=factor, family=name)
            await engine.load(key, folder / key[0], plain, "fp32")
        yield engine


async def test_what_waits_together_is_computed_together(tmp_path: Path) -> None:
    metrics = Metrics()
    async with family(tmp_path, metrics=metrics) as engine:
        futures = [
            *engine.submit(A, items([1], [2])),
            *engine.submit(STRANGER, items([3])),
            *engine.submit(B, items([4])),
            *engine.submit(C, items([5, 6])),
        ]
        assert await outcomes(futures) == [1, 2, 3000, 40, 1100]
        assert [noted(tmp_path / name, "mixed") for name in ("a", "b", "c", "stranger")] == [[3], [], [], []]
        # Each has its own in the books.
        for name, expected in {
            "rm_batch_items_count": [1, 1, 1, 1],
            "rm_batch_items_sum": [2, 1, 1, 1],
            "rm_batch_tokens_sum": [2, 1, 2, 1],
            "rm_queue_wait_seconds_count": [1, 1, 1, 1],
        }.items():
            labels = [{"model": model, "version": str(version)} for model, version in FACTORS]
            assert [metrics.registry.get_sample_value(name, one) for one in labels] == expected, name


async def test_a_large_batch_stays_alone(tmp_path: Path) -> None:
    async with family(tmp_path) as engine:
        futures = [
            *engine.submit(A, items(*([number] * 100 for number in (3, 4, 5)), [2])),
            *engine.submit(B, items([4])),
        ]
        assert (await outcomes(futures))[-2:] == [2, 40]
        assert noted(tmp_path / "a", "mixed") == []


async def test_one_that_does_not_fit_waits_for_its_turn(tmp_path: Path) -> None:
    async with family(tmp_path) as engine:
        futures = [
            *engine.submit(A, items([1] * 100)),
            *engine.submit(B, items([1] * 200)),
            *engine.submit(C, items([5])),
        ]
        assert await outcomes(futures) == [100, 2000, 500]
        assert noted(tmp_path / "a", "mixed") == [2]


async def test_a_failure_is_its_own_items(tmp_path: Path) -> None:
    async with family(tmp_path) as engine:
        now = asyncio.get_running_loop().time()
        futures = [
            *engine.submit(A, items([1], [fake.NAN], [2])),
            *engine.submit(B, items([fake.BAD], [3])),
            *engine.submit(B, items([4]), deadline=now),
            *engine.submit(C, items([5])),
        ]
        expected = [1, NonFiniteScore, 2, InternalError, 30, DeadlineExceeded, 500]
        assert await outcomes(futures) == expected
        assert noted(tmp_path / "a", "mixed")[0] == 3


async def test_an_item_that_kills_workers_takes_nobody_along(tmp_path: Path) -> None:
    async with family(tmp_path, workers=1) as engine:
        futures = [
            *engine.submit(A, items([1])),
            *engine.submit(B, items([fake.ALWAYS_KILL])),
            *engine.submit(C, items([5])),
        ]
        assert await outcomes(futures) == [1, WorkerFailed, 500]


async def test_one_is_unloaded_while_a_shared_batch_is_computed(tmp_path: Path) -> None:
    async with family(tmp_path) as engine:
        futures = [*engine.submit(A, items([fake.WAIT])), *engine.submit(B, items([4])), *engine.submit(C, items([5]))]
        await fake.until(lambda: noted(tmp_path / "a", "mixed") == [3])
        futures[2].cancel()  # nobody waits for it any more, and it is being computed
        unloads = [asyncio.ensure_future(engine.unload(key)) for key in (B, C)]
        await asyncio.sleep(0)
        assert not any(unload.done() for unload in unloads)
        fake.open_gate(tmp_path / "a")
        assert await outcomes(futures[:2]) == [fake.WAIT, 40]
        await asyncio.gather(*unloads)
        assert await outcomes(engine.submit(A, items([7]))) == [7]
