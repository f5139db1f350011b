"""The counts of runs reach the metrics again and again, and outlive a catalog that is away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from fake_versions import until

from rm_server.errors import CatalogUnavailable
from rm_server.metrics import Metrics
from rm_server.registry.run_census import RunCensus
from rm_server.scoring import run_counting


async def test_goes_on_counting_and_keeps_the_last_counts_while_the_catalog_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metrics, rounds = Metrics(), 0
    seen: list[float | None] = []

    def away() -> RunCensus:
        raise CatalogUnavailable("The database is away.")

    def broken() -> RunCensus:
        raise KeyError("a defect")

    def held(number: int) -> Callable[[], RunCensus]:
        return lambda: RunCensus({("m", 1): number}, {}, {}, {})

    answers = [held(1), away, broken, held(2)]

    def count(catalog: object, now: float) -> RunCensus:
        nonlocal rounds
        rounds += 1
        seen.append(leases())
        return answers[min(rounds, len(answers)) - 1]()

    def leases() -> float | None:
        return metrics.registry.get_sample_value("rm_leases", {"model": "m", "version": "1"})

    monkeypatch.setattr(run_counting, "count_runs", count)
    monkeypatch.setattr(run_counting, "COUNT_EVERY_S", 0.0)
    task = asyncio.create_task(run_counting.keep_counting(None, metrics))  # type: ignore[arg-type]
    await until(lambda: rounds > len(answers))
    task.cancel()
    assert seen[:5] == [None, 1, 1, 1, 2]
