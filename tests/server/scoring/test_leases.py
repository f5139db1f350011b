"""Leases begin, are renewed, expire and end; the clock is a number."""

from __future__ import annotations

import pytest

from rm_server.errors import RunNotFound
from rm_server.scoring.leases import Leases


def take(leases: Leases, run: str = "r", model: str = "m", version: int = 1, now: float = 0.0) -> None:
    leases.take(run, model, version, f"digest {version}", arm=None, lease_s=10.0, now=now)


def test_a_lease_lasts_so_long_after_the_last_sign_of_life() -> None:
    leases = Leases(100)
    take(leases, now=5.0)
    assert leases.active("r", "m", 14.9) is not None
    assert leases.renew("r", "m", 14.0).expires_at == 24.0
    assert leases.active("r", "m", 23.9) is not None
    assert leases.active("r", "m", 24.0) is None
    with pytest.raises(RunNotFound, match="has ended"):
        leases.renew("r", "m", 24.0)
    assert leases.last("r", "m") is not None


def test_a_run_has_a_lease_for_each_model() -> None:
    leases = Leases(100)
    take(leases, model="m")
    take(leases, model="n", version=7)
    lease = leases.active("r", "n", 1.0)
    assert lease is not None
    assert lease.key == ("n", 7)
    assert leases.end("r", "n", 1.0) == 1
    assert leases.active("r", "n", 1.0) is None
    assert leases.active("r", "m", 1.0) is not None
    assert leases.end("r", None, 1.0) == 1
    assert leases.end("r", None, 1.0) == 0


def test_ending_what_never_was_is_an_error() -> None:
    leases = Leases(100)
    take(leases)
    with pytest.raises(RunNotFound, match="'x' has no lease"):
        leases.end("x", None, 0.0)
    with pytest.raises(RunNotFound, match="on 'n'"):
        leases.end("r", "n", 0.0)
    with pytest.raises(RunNotFound):
        leases.renew("r", "n", 0.0)


def test_knows_who_holds_a_version() -> None:
    leases = Leases(100)
    take(leases, "b")
    take(leases, "a", now=5.0)
    take(leases, "c", version=2)
    assert leases.holders(("m", 1), 6.0) == ["a", "b"]
    assert leases.holders(("m", 1), 12.0) == ["a"]
    assert leases.holders(("m", 9), 6.0) == []


def test_a_new_lease_replaces_the_old_one() -> None:
    leases = Leases(100)
    take(leases, version=1)
    take(leases, version=2)
    assert [lease.version for lease in leases] == [2]
    assert leases.holders(("m", 1), 1.0) == []


def test_only_leases_that_have_ended_are_forgotten() -> None:
    leases = Leases(2)
    take(leases, "old", now=0.0)
    take(leases, "older", now=-5.0)
    for name in ("a", "b"):
        take(leases, name, now=20.0)
    assert sorted(lease.run for lease in leases) == ["a", "b"]
    take(leases, "c", now=20.0)
    assert sorted(lease.run for lease in leases) == ["a", "b", "c"]
