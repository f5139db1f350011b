"""Every kind of need keeps a version from being deleted, says so, and keeps no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert

from rm_server.errors import VersionInUse
from rm_server.registry.catalog import Catalog
from rm_server.registry.in_use import uses_of
from rm_server.registry.tables import components, labels, pins, runs, shadows, split_arms, splits

NOW = datetime(2026, 1, 2, tzinfo=UTC)
NEEDED = {"model": "m", "version": 1}


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    """m@1, which the tests need, m@2 and other@1."""
    catalog = Catalog(f"sqlite:///{tmp_path}/catalog.db", clock=lambda: NOW)
    for model, digit in (("m", "a"), ("m", "b"), ("other", "a")):
        catalog.register(model, digit * 64, "rules", 0, "ann")
    yield catalog
    catalog.close()


def label(connection: Connection) -> None:
    for name in ("stable", "canary"):
        connection.execute(insert(labels).values(label=name, **NEEDED))


def split(connection: Connection) -> None:
    connection.execute(insert(splits).values(model="m", salt="s", update_time=NOW))
    arm = {"arm": "control", "position": 0, "weight": 1.0, "ramp_json": "[]"}
    connection.execute(insert(split_arms).values(**NEEDED, **arm))


def pin(connection: Connection) -> None:
    connection.execute(insert(pins).values(run="exp-17", **NEEDED))


def shadow(connection: Connection) -> None:
    connection.execute(insert(shadows).values(share=0.1, create_time=NOW, **NEEDED))


def lease(connection: Connection, **changed: Any) -> None:
    values = {
        "run": "exp-17",
        "digest": "a" * 64,
        "arm": "",
        "lease_s": 900.0,
        "register_time": NOW,
        "last_seen": NOW,
        "lease_expires_at": NOW + timedelta(seconds=1),
        "has_ended": False,
        "revision": 1,
    }
    connection.execute(insert(runs).values({**values, **NEEDED, **changed}))


def composite(connection: Connection) -> None:
    connection.execute(insert(components).values(model="other", version=1, part_model="m", part_version=1))


@pytest.mark.parametrize(
    ("need", "says"),
    [
        (label, "is named by the label canary, stable: move or remove it"),
        (split, r"is an arm of the split \(control\): change the split"),
        (pin, "is pinned for the run exp-17: remove the pin"),
        (shadow, "is a shadow of m: stop the shadow"),
        (lease, "is held by the lease of the run exp-17: end the run"),
        (composite, "is a part of the composite other@1: delete that first"),
    ],
)
def test_a_version_that_is_needed_stays(catalog: Catalog, need: Callable[[Connection], None], says: str) -> None:
    with catalog.database.writing() as connection:
        need(connection)
    with pytest.raises(VersionInUse, match=rf"^m@1 {says}"):
        catalog.delete_version("m", 1, "ann")
    assert ("m", 1) in catalog.snapshot().versions
    with catalog.database.reading() as connection:
        assert uses_of(connection, "other", 1, NOW) == []
    catalog.delete_version("m", 2, "ann")


def test_a_version_that_shall_be_loaded_stays(catalog: Catalog) -> None:
    catalog.set_wanted("m", 1, True, "ann")
    with pytest.raises(VersionInUse, match="m@1 is to be loaded: unload it"):
        catalog.delete_version("m", 1, "ann")


def test_all_needs_are_said_at_once(catalog: Catalog) -> None:
    with catalog.database.writing() as connection:
        label(connection)
        pin(connection)
        assert len(uses_of(connection, "m", 1, NOW)) == 2
        assert uses_of(connection, "m", 2, NOW) == []


def test_many_runs_are_not_all_named(catalog: Catalog) -> None:
    with catalog.database.writing() as connection:
        for number in range(7):
            lease(connection, run=f"run-{number}")
        (need,) = uses_of(connection, "m", 1, NOW)
    assert "run-0, run-1, run-2, run-3, run-4 and 2 more" in need


@pytest.mark.parametrize("over", [{"has_ended": True}, {"lease_expires_at": NOW}])
def test_a_lease_that_is_over_is_no_need(catalog: Catalog, over: dict[str, Any]) -> None:
    with catalog.database.writing() as connection:
        lease(connection, **over)
    catalog.delete_version("m", 1, "ann")


def test_what_another_version_of_the_composites_model_is_says_nothing(catalog: Catalog) -> None:
    catalog.register("other", "c" * 64, "lora", 0, "ann")
    with catalog.database.writing() as connection:
        composite(connection)
        assert uses_of(connection, "m", 1, NOW) == ["is a part of the composite other@1: delete that first"]


def test_a_composite_frees_its_parts_when_it_is_deleted(catalog: Catalog) -> None:
    with catalog.database.writing() as connection:
        composite(connection)
    catalog.delete_version("other", 1, "ann")
    catalog.delete_version("m", 1, "ann")
