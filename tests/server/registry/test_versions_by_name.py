"""Versions by name."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from rm_server.errors import InvalidSelector, LabelNotFound, ModelNotFound, RmError, VersionNotFound
from rm_server.registry.records import Snapshot, VersionRecord
from rm_server.registry.versions_by_name import find_version

RECORDS = {
    (model, version): VersionRecord(model, version, "d", "rules", datetime.now(UTC), "me", "", 0)
    for model, version in (("m", 1), ("m", 2), ("a/b", 1))
}
SNAPSHOT = Snapshot(1, RECORDS, {("m", "stable"): 2}, frozenset())


@pytest.mark.parametrize(("name", "key"), [("m@1", ("m", 1)), ("m@stable", ("m", 2)), ("a/b@1", ("a/b", 1))])
def test_a_version_is_found_by_number_and_by_label(name: str, key: tuple[str, int]) -> None:
    assert find_version(SNAPSHOT, name).key == key


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("m", InvalidSelector, "names no version"),
        ("@1", InvalidSelector, "names no version"),
        ("m@", InvalidSelector, "names no version"),
        ("x@1", ModelNotFound, "has no model .x.; it has a/b, m"),
        ("m@canary", LabelNotFound, "it has stable"),
        ("m@7", VersionNotFound, "it has 1, 2"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(name: str, error: type[RmError], words: str) -> None:
    with pytest.raises(error, match=words):
        find_version(SNAPSHOT, name)
