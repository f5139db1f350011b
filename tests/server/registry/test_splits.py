"""Splits and pins in the catalog: what is set or taken away is of one model, and of one run."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from rm_server.errors import InvalidRequest
from rm_server.registry.catalog import Catalog
from rm_server.registry.records import Arm, Split
from rm_server.registry.splits import MAX_SALT_LENGTH, remove_pin, remove_split, set_pin, set_split

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """m@1, m@2 and other@1."""
    catalog = Catalog(f"sqlite:///{tmp_path}/catalog.db")
    for model, digit in (("m", "a"), ("m", "b"), ("other", "a")):
        catalog.register(model, digit * 64, "rules", 0, "ann")
    return catalog


def split(model: str, *versions: int, salt: str = "") -> Split:
    return Split(model, tuple(Arm(f"arm-{version}", version, 1.0) for version in versions), salt, NOW)


def test_a_split_is_of_one_model(catalog: Catalog) -> None:
    made = {model: set_split(catalog, split(model, 1), "ann") for model in ("m", "other")}
    made["m"] = set_split(catalog, split("m", 2, 1), "ann")
    assert catalog.snapshot().splits == made
    remove_split(catalog, "m", "ann")
    del made["m"]
    assert catalog.snapshot().splits == made


def test_a_pin_is_of_one_run_and_model(catalog: Catalog) -> None:
    for run, model in (("a", "m"), ("b", "m"), ("a", "other")):
        set_pin(catalog, run, model, 1, "ann")
    set_pin(catalog, "a", "m", 2, "ann")
    assert catalog.snapshot().pins == {("m", "a"): 2, ("m", "b"): 1, ("other", "a"): 1}
    remove_pin(catalog, "a", "m", "ann")
    assert catalog.snapshot().pins == {("m", "b"): 1, ("other", "a"): 1}


def test_a_salt_has_an_end(catalog: Catalog) -> None:
    salt = MAX_SALT_LENGTH * "s"
    assert set_split(catalog, split("m", 1, salt=salt), "ann").salt == salt
    with pytest.raises(InvalidRequest, match="A salt has up to 200 characters; this one has 201"):
        set_split(catalog, split("m", 1, salt=salt + "s"), "ann")
