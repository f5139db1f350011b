"""The catalog's runs in figures: who holds what, whose lease is over, who is at work, and the busiest one's share."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgresql import has_postgresql, postgresql, postgresql_url  # noqa: F401 – fixtures
from sqlalchemy import event

from rm_server.registry.catalog import Catalog
from rm_server.registry.run_census import ACTIVE_S, OVER_S, RunCensus, count_runs
from rm_server.registry.run_records import Lease, RunStatistics
from rm_server.registry.runs import assign_run, end_runs, look, write_activity

NOW = 1_000_000.0


@pytest.fixture(params=["sqlite", "postgresql"] if has_postgresql() else ["sqlite"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    """m@1, m@2 and n@1."""
    is_file = request.param == "sqlite"
    catalog = Catalog(f"sqlite:///{tmp_path}/catalog.db" if is_file else request.getfixturevalue("postgresql_url"))
    for model, digit in (("m", "a"), ("m", "b"), ("n", "a")):
        catalog.register(model, digit * 64, "rules", 0, "ann")
    yield catalog
    catalog.close()


def give(catalog: Catalog, run: str, model: str, version: int, expires_at: float) -> None:
    assign_run(catalog, Lease(run, model, version, "a" * 64, None, 900.0, expires_at - 900.0, expires_at), None)


def scored(run: str, model: str, version: int, tokens_per_s: float, last_seen: float = NOW) -> RunStatistics:
    return RunStatistics(run, model, version, num_items=1, tokens_per_s=tokens_per_s, last_seen=last_seen)


def test_counts_nothing_where_there_is_no_run(catalog: Catalog) -> None:
    assert count_runs(catalog, NOW) == RunCensus({}, {}, {}, {})


def test_counts_leases_by_version_and_those_that_are_over_for_an_hour(catalog: Catalog) -> None:
    for run in ("a", "b"):
        give(catalog, run, "m", 1, NOW + 1)
    give(catalog, "c", "m", 2, NOW + 900)
    give(catalog, "c", "n", 1, NOW)
    give(catalog, "long ago", "m", 1, NOW - OVER_S)
    give(catalog, "done", "m", 2, NOW + 900)
    end_runs(catalog, "done", "m", NOW - 10)
    census = count_runs(catalog, NOW)
    assert census.leases == {("m", 1): 2, ("m", 2): 1}
    assert census.leases_over == {("n", "expired"): 1, ("m", "ended"): 1}
    later = count_runs(catalog, NOW + 1)
    assert later.leases == {("m", 2): 1}
    assert later.leases_over == {("n", "expired"): 1, ("m", "ended"): 1, ("m", "expired"): 2}


def test_counts_the_runs_at_work_and_how_much_the_busiest_one_takes(catalog: Catalog) -> None:
    write_activity(
        catalog,
        [],
        [
            scored("a", "m", 1, 10.0),
            scored("a", "m", 2, 20.0),
            scored("b", "m", 2, 20.0),
            scored("c", "n", 1, 5.0),
            scored("away", "m", 1, 1000.0, NOW - ACTIVE_S),
        ],
    )
    census = count_runs(catalog, NOW)
    assert census.active == {("m", 1): 1, ("m", 2): 2, ("n", 1): 1}
    assert census.largest_share == pytest.approx({"m": 0.6, "n": 1.0})


def test_what_a_run_did_longer_ago_weighs_less(catalog: Catalog) -> None:
    write_activity(catalog, [], [scored("a", "m", 1, 10.0), scored("b", "m", 1, 20.0, NOW - 120.0)])
    assert count_runs(catalog, NOW).largest_share["m"] > 0.7


def test_neither_the_census_nor_a_look_goes_through_the_runs_that_are_long_over(tmp_path: Path) -> None:
    catalog, asked = Catalog(f"sqlite:///{tmp_path}/catalog.db"), []
    with catalog.database.reading() as connection:
        event.listen(connection.engine, "before_cursor_execute", lambda *call: asked.append(call[2:4]))
    count_runs(catalog, NOW)
    look(catalog, NOW)
    with sqlite3.connect(tmp_path / "catalog.db") as file:
        plans = [step for query in asked for *_, step in file.execute(f"EXPLAIN QUERY PLAN {query[0]}", query[1])]
    of_runs = [step for step in plans if " run" in step]
    assert len(of_runs) == 4
    assert [step for step in of_runs if not step.startswith("SEARCH")] == []
    catalog.close()
