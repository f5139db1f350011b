"""Splits and pins in the catalog: what is set or taken away is of one model, and of one run, and in the history."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from rm_server.errors import InvalidRequest, ModelNotFound, RunNotFound, VersionNotFound
from rm_server.registry.catalog import Catalog
from rm_server.registry.records import Arm, RampPoint, Split
from rm_server.registry.run_records import Lease
from rm_server.registry.runs import assign_run, end_runs
from rm_server.registry.splits import (
    MAX_SALT_LENGTH,
    count_runs,
    remove_pin,
    remove_split,
    set_pin,
    set_split,
)

NOW = datetime(2026, 1, 2, tzinfo=UTC)
RAMP = (RampPoint(1000.0, 0.0), RampPoint(2000.5, 0.25))


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


def test_a_split_or_pin_that_is_there_already_changes_nothing(catalog: Catalog) -> None:
    made = set_split(catalog, split("m", 1, 2), "ann")
    set_pin(catalog, "a", "m", 1, "ann")
    revision = catalog.revision()
    assert set_split(catalog, split("m", 1, 2), "bob") == made
    set_pin(catalog, "a", "m", 1, "bob")
    assert catalog.revision() == revision
    others = [
        split("m", 2, 1),
        split("m", 1, 2, salt="another"),
        replace(made, arms=(made.arms[0], replace(made.arms[1], weight=0.5))),
        replace(made, arms=(made.arms[0], replace(made.arms[1], ramp=RAMP))),
    ]
    for number, other in enumerate(others, start=1):
        changed = set_split(catalog, other, "bob")
        assert (changed.arms, catalog.snapshot().splits["m"]) == (other.arms, changed)
        assert catalog.revision() == revision + number


def test_what_is_set_and_taken_away_is_in_the_history(catalog: Catalog) -> None:
    arms = (Arm("old", 1, 0.75), Arm("new", 2, 0.0, RAMP))
    set_split(catalog, Split("m", arms, "", NOW), "ann", "is it better?")
    set_pin(catalog, "a", "m", 1, "ann", "a look")
    set_pin(catalog, "a", "m", 2, "ann")
    remove_pin(catalog, "a", "m", "bob", "seen")
    remove_split(catalog, "m", "bob", "it is")
    assert [(line.actor, line.action, line.version, line.detail, line.comment) for line in catalog.history("m", 5)] == [
        ("bob", "remove_split", 0, "old=1:0.75, new=2:0 with 2 ramp points", "it is"),
        ("bob", "remove_pin", 0, "a: 2 → none", "seen"),
        ("ann", "set_pin", 2, "a: 1 → 2", ""),
        ("ann", "set_pin", 1, "a: none → 1", "a look"),
        ("ann", "set_split", 0, "old=1:0.75, new=2:0 with 2 ramp points; salt m", "is it better?"),
    ]


def test_what_is_not_there_is_neither_set_nor_taken_away(catalog: Catalog) -> None:
    revision = catalog.revision()
    with pytest.raises(VersionNotFound, match="'other' has no version 2"):
        set_split(catalog, split("other", 1, 2), "ann")
    with pytest.raises(VersionNotFound, match="'other' has no version 2"):
        set_pin(catalog, "a", "other", 2, "ann")
    with pytest.raises(InvalidRequest, match="'a b' cannot name a run"):
        set_pin(catalog, "a b", "m", 1, "ann")
    with pytest.raises(InvalidRequest, match="'m' has no split"):
        remove_split(catalog, "m", "ann")
    with pytest.raises(RunNotFound, match="'a' is not pinned to a version of 'm'"):
        remove_pin(catalog, "a", "m", "ann")
    with pytest.raises(ModelNotFound, match="no model 'nowhere'"):
        remove_split(catalog, "nowhere", "ann")
    with pytest.raises(ModelNotFound, match="no model 'nowhere'"):
        remove_pin(catalog, "a", "nowhere", "ann")
    assert catalog.revision() == revision


def test_a_split_keeps_its_salt_until_another_is_given(catalog: Catalog) -> None:
    salts = [
        set_split(catalog, split("m", *versions, salt=salt), "ann").salt
        for versions, salt in (((1,), ""), ((1,), "first"), ((1, 2), ""), ((1, 2), "second"))
    ]
    assert salts == ["m", "first", "first", "second"]


@pytest.mark.parametrize(
    ("arms", "why"),
    [
        ((), "needs an arm with a weight above 0"),
        ((Arm("a", 1, 0.0, (RampPoint(1.0, 0.0),)),), "needs an arm with a weight above 0"),
        ((Arm("a" * 65, 1, 1.0),), "cannot name an arm"),
        ((Arm("a\n", 1, 1.0),), "cannot name an arm"),
        ((Arm("a", 1, 1.0), Arm("a", 2, 1.0)), "Two arms are named 'a'"),
        ((Arm("a", 1, 1.0), Arm("b", 2, -0.5)), "'b' has the weight -0.5"),
        ((Arm("a", 1, math.inf),), "'a' has the weight inf"),
        ((Arm("a", 1, 1.0, (RampPoint(1.0, math.nan),)),), "'a' has the weight nan"),
        ((Arm("a", 1, 1.0, (RampPoint(1.0, 0.5), RampPoint(1.0, 0.6))),), "'a' does not ascend in time"),
    ],
)
def test_arms_that_make_no_sense_are_refused(catalog: Catalog, arms: tuple[Arm, ...], why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        set_split(catalog, Split("m", arms, "", NOW), "ann")
    assert catalog.snapshot().splits == {}


@pytest.mark.parametrize(
    "arms", [(Arm("a" * 64, 1, 0.0), Arm("A.b_c-9", 2, 1e-9)), (Arm("a", 1, 0.0, RAMP), Arm("b", 2, 0.0))]
)
def test_one_weight_above_0_is_enough_now_or_later(catalog: Catalog, arms: tuple[Arm, ...]) -> None:
    assert set_split(catalog, Split("m", arms, "", NOW), "ann").arms == catalog.snapshot().splits["m"].arms == arms


def test_runs_are_counted_by_model_and_by_the_arm_that_they_were_given(catalog: Catalog) -> None:
    given = [("a", "m", "new"), ("b", "m", "new"), ("c", "m", "old"), ("a", "other", "new"), ("d", "m", None)]
    for run, model, arm in given:
        assign_run(catalog, Lease(run, model, 1, "a" * 64, arm, 900.0, 1000.0, 1900.0), None)
    end_runs(catalog, "b", None, 1100.0)
    assert count_runs(catalog) == {("m", "new"): 2, ("m", "old"): 1, ("other", "new"): 1}


def test_a_salt_has_an_end(catalog: Catalog) -> None:
    salt = MAX_SALT_LENGTH * "s"
    assert set_split(catalog, split("m", 1, salt=salt), "ann").salt == salt
    with pytest.raises(InvalidRequest, match="A salt has up to 200 characters; this one has 201"):
        set_split(catalog, split("m", 1, salt=salt + "s"), "ann")
