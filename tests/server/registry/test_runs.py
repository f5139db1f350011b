"""Which runs the catalog lets go of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from postgresql import has_postgresql, postgresql, postgresql_url  # noqa: F401 – fixtures

from rm_server.registry import runs
from rm_server.registry.catalog import Catalog
from rm_server.registry.run_records import Lease
from rm_server.registry.runs import assign_run, forget_runs, list_runs

NOW = 1_000_000.0


@pytest.fixture(params=["sqlite", "postgresql"] if has_postgresql() else ["sqlite"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    """m@1."""
    is_file = request.param == "sqlite"
    catalog = Catalog(f"sqlite:///{tmp_path}/catalog.db" if is_file else request.getfixturevalue("postgresql_url"))
    catalog.register("m", "a" * 64, "rules", 0, "ann")
    yield catalog
    catalog.close()


def give(catalog: Catalog, run: str, seen_at: float, expires_at: float) -> None:
    assign_run(catalog, Lease(run, "m", 1, "a" * 64, None, 900.0, seen_at, expires_at), None)


def test_those_that_are_long_over_are_forgotten_though_many_that_have_a_lease_were_seen_after_them(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "_CHUNK", 2)
    for number in range(3):
        give(catalog, f"over {number}", NOW - 100 + number, NOW - 50)
    for number in range(4):
        give(catalog, f"leased {number}", NOW - 20 + number, NOW + 900)
    give(catalog, "over of late", NOW - 1, NOW)
    assert forget_runs(catalog, 2, NOW) == 2
    assert forget_runs(catalog, 2, NOW) == 1
    assert forget_runs(catalog, 2, NOW) == 0
    known = {lease.run for lease in list_runs(catalog, None, None)[0]}
    assert known == {"leased 0", "leased 1", "leased 2", "leased 3", "over of late"}
