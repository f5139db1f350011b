"""Leases begin, are renewed, expire and end; the clock is a number."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rm_server.errors import RunNotFound
from rm_server.registry.records import VersionKey
from rm_server.registry.run_records import Lease
from rm_server.scoring.leases import Leases

QUIET_S = 2.0


def put(
    leases: Leases, run: str = "r", model: str = "m", version: int = 1, now: float = 0.0, revision: int = 1
) -> Lease:
    lease = Lease(run, model, version, f"digest {version}", None, 10.0, now, now + 10.0, revision=revision)
    leases.put(lease, now)
    return lease


def test_a_lease_lasts_so_long_after_the_last_sign_of_life() -> None:
    leases = Leases(100)
    put(leases, now=5.0)
    assert leases.active("r", "m", 14.9) is not None
    assert leases.renew("r", "m", 14.0).expires_at == 24.0
    assert leases.active("r", "m", 23.9) is not None
    assert leases.active("r", "m", 24.0) is None
    assert leases.last("r", "m") is not None


def test_a_run_has_a_lease_for_each_model() -> None:
    leases = Leases(100)
    put(leases, model="m")
    put(leases, model="n", version=7)
    lease = leases.active("r", "n", 1.0)
    assert lease is not None
    assert lease.key == ("n", 7)
    leases.put(replace(lease, has_ended=True, revision=2), 1.0)
    assert leases.active("r", "n", 1.0) is None
    assert leases.active("r", "m", 1.0) is not None


def test_what_never_was_or_has_ended_cannot_be_renewed() -> None:
    leases = Leases(100)
    lease = put(leases)
    with pytest.raises(RunNotFound, match="on 'n'"):
        leases.renew("r", "n", 0.0)
    leases.put(replace(lease, has_ended=True, revision=2), 1.0)
    with pytest.raises(RunNotFound, match="has ended"):
        leases.renew("r", "m", 1.0)


def test_knows_who_holds_a_version() -> None:
    leases = Leases(100)
    put(leases, "b")
    put(leases, "a", now=5.0)
    put(leases, "c", version=2)
    assert leases.holders(("m", 1), 6.0) == ["a", "b"]
    assert leases.holders(("m", 1), 12.0) == ["a"]
    assert leases.holders(("m", 9), 6.0) == []


def test_who_holds_a_version_is_known_without_going_through_all_runs_that_there_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leases = Leases(100)
    looked_at: list[str] = []
    for number in range(100):
        put(leases, f"r{number}", version=2)
    put(leases, "last", now=10.0)
    assert leases.last("r0", "m") is None  # too many

    def key_of(lease: Lease) -> VersionKey:
        looked_at.append(lease.run)
        return (lease.model, lease.version)

    monkeypatch.setattr(Lease, "key", property(key_of))
    assert leases.holders(("m", 1), 12.0) == ["last"]
    assert set(looked_at) <= {"last"}


def test_what_the_catalog_says_replaces_what_was_known_but_for_later_signs_of_life() -> None:
    leases = Leases(100)
    lease = put(leases)
    leases.renew("r", "m", 3.0)
    leases.put(lease, 4.0)
    assert leases.last("r", "m") == replace(lease, last_seen=3.0, expires_at=13.0)
    assert [due.last_seen for due in leases.unwritten()] == [3.0]
    moved = put(leases, version=2, now=1.0, revision=2)
    assert list(leases) == [moved]
    assert leases.unwritten() == []
    assert leases.holders(("m", 1), 1.0) == []
    # A slow look at the catalog says what was true before.
    leases.put(lease, 5.0)
    assert list(leases) == [moved]


def test_a_sign_of_life_is_written_after_a_quarter_of_the_lease_or_when_the_run_is_quiet() -> None:
    leases = Leases(100)
    put(leases)
    assert leases.due(100.0, QUIET_S) == []
    leases.renew("r", "m", 2.0)
    assert leases.due(2.5, QUIET_S) == []
    leases.renew("r", "m", 2.5)
    (due,) = leases.due(2.5, QUIET_S)
    leases.renew("r", "m", 3.0)
    leases.note_written([due])
    assert leases.due(3.5, QUIET_S) == []
    (due,) = leases.due(5.0, QUIET_S)
    assert due.last_seen == 3.0
    leases.note_written([due])
    assert leases.due(100.0, QUIET_S) == leases.unwritten() == []


def test_a_sign_of_life_for_the_version_that_came_during_the_writing_is_still_to_be_written() -> None:
    leases = Leases(100)
    put(leases)
    written = leases.renew("r", "m", 1.0)
    put(leases, version=2, now=2.0, revision=2)
    moved = leases.renew("r", "m", 3.0)
    leases.note_written([written])
    assert leases.unwritten() == [moved]
    leases.note_written([replace(moved, run="forgotten meanwhile"), moved])
    assert leases.unwritten() == []


def test_where_most_leases_are_held_not_all_are_looked_at_for_each_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    num_looked_at = 0
    is_active = Lease.is_active

    def counting(lease: Lease, now: float) -> bool:
        nonlocal num_looked_at
        num_looked_at += 1
        return is_active(lease, now)

    monkeypatch.setattr(Lease, "is_active", counting)
    leases = Leases(100)
    for number in range(1000):
        put(leases, str(number), now=0.0)
    assert num_looked_at < 60_000  # one by one, 500 000
    for number in range(1000, 1011):
        put(leases, str(number), now=20.0)
    assert len(list(leases)) <= 110


def test_only_leases_that_have_ended_are_forgotten() -> None:
    leases = Leases(2)
    put(leases, "old", now=0.0)
    leases.renew("old", "m", 0.0)
    put(leases, "older", now=-5.0)
    for name in ("a", "b"):
        put(leases, name, now=20.0)
    assert sorted(lease.run for lease in leases) == ["a", "b"]
    assert leases.unwritten() == []
    put(leases, "c", now=20.0)
    assert sorted(lease.run for lease in leases) == ["a", "b", "c"]
