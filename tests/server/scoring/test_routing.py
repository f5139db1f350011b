"""Which version a selector means, as tables."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from rm_server.errors import LabelNotFound, ModelNotFound, NoDefaultVersion, RmError, VersionNotFound
from rm_server.registry.records import Snapshot, VersionRecord
from rm_server.scoring.routing import Route, resolve
from rm_server.scoring.selector import parse


def version(model: str, number: int) -> VersionRecord:
    return VersionRecord(
        model, number, f"digest of {model}@{number}", "rules", datetime(2026, 1, 1, tzinfo=UTC), "me", "", 0
    )


RECORDS = [version("m", 1), version("m", 2), version("m", 3), version("n", 1)]
SNAPSHOT = Snapshot(
    5, {record.key: record for record in RECORDS}, {("m", "stable"): 2, ("m", "canary"): 3}, frozenset()
)


@pytest.mark.parametrize(
    ("selector", "lease", "number", "label"),
    [
        ("m@1", None, 1, None),
        ("m@canary", None, 3, "canary"),
        ("m", None, 2, "stable"),
        # A lease is for the bare name alone.
        ("m", 1, 1, None),
        ("m@stable", 1, 2, "stable"),
        ("m@3", 1, 3, None),
    ],
)
def test_finds(selector: str, lease: int | None, number: int, label: str | None) -> None:
    assert resolve(parse(selector), SNAPSHOT, lease) == Route(("m", number), f"digest of m@{number}", label)


@pytest.mark.parametrize(
    ("selector", "lease", "error", "message"),
    [
        ("x", None, ModelNotFound, "'x'; it has m, n"),
        ("x@1", None, ModelNotFound, "it has m, n"),
        ("x@stable", None, ModelNotFound, "it has m, n"),
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
