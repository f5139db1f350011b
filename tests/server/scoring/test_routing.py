"""Which version a selector means, as tables."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from rm_server.errors import LabelNotFound, ModelNotFound, NoDefaultVersion, RmError, VersionNotFound
from rm_server.registry.records import Arm, Snapshot, Split, VersionRecord
from rm_server.scoring.routing import ChosenBy, Route, resolve
from rm_server.scoring.selector import parse


def version(model: str, number: int) -> VersionRecord:
    return VersionRecord(
        model, number, f"digest of {model}@{number}", "rules", datetime(2026, 1, 1, tzinfo=UTC), "me", "", 0
    )


RECORDS = [version("m", 1), version("m", 2), version("m", 3), version("n", 1), version("s", 1), version("s", 2)]
SNAPSHOT = Snapshot(
    5,
    {record.key: record for record in RECORDS},
    {("m", "stable"): 2, ("m", "canary"): 3, ("s", "stable"): 1},
    frozenset(),
    splits={"s": Split("s", (Arm("a", 1, 0.0), Arm("b", 2, 1.0)), "s", datetime(2026, 1, 1, tzinfo=UTC))},
    pins={("s", "pinned"): 1, ("m", "pinned"): 3},
)


@pytest.mark.parametrize(
    ("selector", "lease", "number", "label", "chosen_by"),
    [
        ("m@1", None, 1, None, "number"),
        ("m@canary", None, 3, "canary", "label"),
        ("m", None, 2, "stable", "label"),
        # A lease is for the bare name alone.
        ("m", 1, 1, None, "lease"),
        ("m@stable", 1, 2, "stable", "label"),
        ("m@3", 1, 3, None, "number"),
    ],
)
def test_finds(selector: str, lease: int | None, number: int, label: str | None, chosen_by: ChosenBy) -> None:
    expected = Route(("m", number), f"digest of m@{number}", label, None, chosen_by)
    assert resolve(parse(selector), SNAPSHOT, lease) == expected


@pytest.mark.parametrize(
    ("selector", "run", "lease", "number", "arm", "chosen_by"),
    [
        ("s", "r", None, 2, "b", "split"),
        # Lease before pin, pin before split, split before label.
        ("s", "pinned", 2, 2, None, "lease"),
        ("s", "pinned", None, 1, None, "pin"),
        ("m", "pinned", None, 3, None, "pin"),
        ("s", "r", 1, 1, None, "lease"),
        # Who names no run is nobody that a split could stick to.
        ("s", "", None, 1, None, "label"),
        ("s@stable", "r", None, 1, None, "label"),
        ("s@2", "pinned", None, 2, None, "number"),
    ],
)
def test_a_bare_name_means_lease_pin_split_label_in_this_order(
    selector: str, run: str, lease: int | None, number: int, arm: str | None, chosen_by: ChosenBy
) -> None:
    route = resolve(parse(selector), SNAPSHOT, lease, run=run)
    assert (route.key[1], route.arm, route.chosen_by) == (number, arm, chosen_by)


def test_a_split_that_takes_no_runs_leaves_them_to_the_label() -> None:
    closed = Split("s", (Arm("b", 2, 0.0),), "s", datetime(2026, 1, 1, tzinfo=UTC))
    route = resolve(parse("s"), replace(SNAPSHOT, splits={"s": closed}), None, run="r")
    assert (route.key, route.label) == (("s", 1), "stable")


@pytest.mark.parametrize(
    ("selector", "lease", "error", "message"),
    [
        ("x", None, ModelNotFound, "'x'; it has m, n, s"),
        ("x@1", None, ModelNotFound, "it has m, n, s"),
        ("x@stable", None, ModelNotFound, "it has m, n, s"),
        ("m@9", None, VersionNotFound, "no version 9; it has 1, 2, 3"),
        ("m", 9, VersionNotFound, "no version 9"),
        ("m@beta", None, LabelNotFound, "no label 'beta'; it has canary, stable"),
        ("n", None, NoDefaultVersion, "n@1; labels: none"),
    ],
)
def test_says_what_there_is(selector: str, lease: int | None, error: type[RmError], message: str) -> None:
    with pytest.raises(error, match=message):
        resolve(parse(selector), SNAPSHOT, lease)


def test_an_empty_catalog_has_no_model() -> None:
    with pytest.raises(ModelNotFound, match="it has none"):
        resolve(parse("m"), Snapshot(0, {}, {}, frozenset()), None)
