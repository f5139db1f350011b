"""What the catalog says of runs to servers that follow it, what they may change, and which runs it lets go of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from postgresql import has_postgresql, postgresql, postgresql_url  # noqa: F401 – fixtures

from rm_server.errors import RunNotFound, VersionNotFound
from rm_server.registry import runs
from rm_server.registry.catalog import Catalog
from rm_server.registry.run_records import Lease, RunStatistics
from rm_server.registry.runs import (
    Holders,
    assign_run,
    changed_runs,
    end_runs,
    find_run,
    forget_runs,
    list_runs,
    look,
    write_activity,
)

NOW = 1_000_000.0


@pytest.fixture(params=["sqlite", "postgresql"] if has_postgresql() else ["sqlite"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    """m@1, m@2 and other@1."""
    is_file = request.param == "sqlite"
    catalog = Catalog(f"sqlite:///{tmp_path}/catalog.db" if is_file else request.getfixturevalue("postgresql_url"))
    for model, digit in (("m", "a"), ("m", "b"), ("other", "a")):
        catalog.register(model, digit * 64, "rules", 0, "ann")
    yield catalog
    catalog.close()


def give(catalog: Catalog, run: str, seen_at: float, expires_at: float, model: str = "m", version: int = 1) -> Lease:
    lease = Lease(run, model, version, "a" * 64, None, 900.0, seen_at, expires_at)
    return assign_run(catalog, lease, find_run(catalog, run, model))[0]


def test_of_two_that_give_a_run_a_version_the_second_gets_what_the_first_gave(catalog: Catalog) -> None:
    first = Lease("a", "m", 1, "a" * 64, None, 900.0, NOW, NOW + 900)
    second = replace(first, version=2, digest="b" * 64, arm="b", lease_s=60.0)
    given, is_first = assign_run(catalog, first, None)
    assert is_first
    assert assign_run(catalog, second, None) == (given, False)
    moved, is_moved = assign_run(catalog, second, given)
    assert (is_moved, moved.version) == (True, 2)
    assert assign_run(catalog, first, given) == (moved, False)
    assert find_run(catalog, "a", "m") == moved


def test_a_run_that_was_forgotten_since_it_was_seen_is_given_a_version(catalog: Catalog) -> None:
    seen = give(catalog, "a", NOW - 100, NOW - 50)
    assert forget_runs(catalog, 0, NOW) == 1
    given, is_given = assign_run(catalog, replace(seen, version=2, last_seen=NOW, expires_at=NOW + 900), seen)
    assert (is_given, find_run(catalog, "a", "m")) == (True, given)


def test_no_run_is_given_what_is_not_there(catalog: Catalog) -> None:
    with pytest.raises(VersionNotFound, match="'m' has no version 3"):
        give(catalog, "a", NOW, NOW + 900, version=3)
    assert find_run(catalog, "a", "m") is None


def test_a_look_sees_who_holds_what(catalog: Catalog) -> None:
    give(catalog, "b", NOW, NOW + 1)
    give(catalog, "a", NOW, NOW + 1)
    give(catalog, "a", NOW, NOW + 1, "other")
    give(catalog, "over", NOW, NOW, version=2)
    give(catalog, "ended", NOW, NOW + 1, version=2)
    end_runs(catalog, "ended", None, NOW)
    assert look(catalog, NOW).holders == {("m", 1): Holders(2, "a"), ("other", 1): Holders(1, "a")}
    assert look(catalog, NOW - 0.5).holders[("m", 2)] == Holders(1, "over")


def test_what_changed_since_then_is_told_in_its_order(catalog: Catalog) -> None:
    give(catalog, "z", NOW, NOW + 1)
    give(catalog, "y", NOW, NOW + 1)
    told = look(catalog, NOW).run_revision
    assert changed_runs(catalog, told) == ()
    give(catalog, "b", NOW, NOW + 1)
    give(catalog, "a", NOW, NOW + 1)
    give(catalog, "z", NOW, NOW + 1, version=2)
    assert [(lease.run, lease.version) for lease in changed_runs(catalog, told)] == [("b", 1), ("a", 1), ("z", 2)]


def test_a_run_ends_by_itself_and_for_the_model_that_is_named(catalog: Catalog) -> None:
    for run in ("a", "b"):
        for model in ("m", "other"):
            give(catalog, run, NOW, NOW + 900, model)

    def over() -> set[tuple[str, str]]:
        return {(lease.run, lease.model) for lease in list_runs(catalog, None, None)[0] if lease.has_ended}

    told = look(catalog, NOW).run_revision
    (ended,) = end_runs(catalog, "a", "m", NOW + 1)
    assert (ended.has_ended, ended.expires_at) == (True, NOW + 1)
    assert changed_runs(catalog, told) == (ended,)
    assert over() == {("a", "m")}
    assert len(end_runs(catalog, "a", None, NOW + 2)) == 2
    assert over() == {("a", "m"), ("a", "other")}
    assert find_run(catalog, "a", "m").expires_at == NOW + 1  # type: ignore[union-attr]


def test_what_never_had_a_lease_has_no_end(catalog: Catalog) -> None:
    give(catalog, "a", NOW, NOW + 900)
    told = look(catalog, NOW).run_revision
    with pytest.raises(RunNotFound, match=r"The run 'b' has no lease\."):
        end_runs(catalog, "b", None, NOW)
    with pytest.raises(RunNotFound, match=r"The run 'a' has no lease on 'other'\."):
        end_runs(catalog, "a", "other", NOW)
    assert look(catalog, NOW).run_revision == told


def test_signs_of_life_are_for_the_lease_that_was_seen(catalog: Catalog) -> None:
    seen = give(catalog, "a", NOW, NOW + 900)
    others = [give(catalog, "b", NOW, NOW + 900), give(catalog, "a", NOW, NOW + 900, "other")]
    alive = replace(seen, last_seen=NOW + 10, expires_at=NOW + 910)
    write_activity(catalog, [alive], [])
    assert find_run(catalog, "a", "m") == alive
    write_activity(catalog, [replace(seen, last_seen=NOW + 5, expires_at=NOW + 905)], [])
    assert find_run(catalog, "a", "m") == alive
    assert [find_run(catalog, lease.run, lease.model) for lease in others] == others
    moved = give(catalog, "a", NOW + 20, NOW + 920, version=2)
    write_activity(catalog, [replace(alive, last_seen=NOW + 30, expires_at=NOW + 930)], [])
    assert find_run(catalog, "a", "m") == moved


def test_statistics_of_one_call_add_to_their_own_alone(catalog: Catalog) -> None:
    def scored(run: str, version: int, num_items: int) -> RunStatistics:
        return RunStatistics(run, "m", version, num_items=num_items, last_seen=NOW)

    write_activity(catalog, [], [scored("a", 1, 1), scored("a", 2, 10), scored("b", 1, 100)])
    write_activity(catalog, [], [scored("a", 1, 2), scored("a", 1, 3), scored("c", 1, 1000)])
    found = {part.key: part.num_items for part in list_runs(catalog, None, None)[1]}
    assert found == {("a", "m", 1): 6, ("a", "m", 2): 10, ("b", "m", 1): 100, ("c", "m", 1): 1000}
    assert [part.run for part in list_runs(catalog, "m", "b")[1]] == ["b"]
    assert list_runs(catalog, "other", None)[1] == []


def test_more_statistics_than_one_query_takes_count_once(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_CHUNK", 2)
    scored = [RunStatistics(f"run {number}", "m", 1, num_items=1, last_seen=NOW) for number in range(5)]
    for times in (1, 2):
        write_activity(catalog, [], scored)
        assert [part.num_items for part in list_runs(catalog, None, None)[1]] == [times] * 5


def test_the_statistics_seen_last_are_kept(catalog: Catalog) -> None:
    for number in range(4):
        write_activity(catalog, [], [RunStatistics(f"run {number}", "m", 1, last_seen=NOW + number)])
    assert forget_runs(catalog, 2, NOW) == 0
    assert {part.run for part in list_runs(catalog, None, None)[1]} == {"run 2", "run 3"}


def test_of_the_runs_that_are_over_those_seen_last_are_kept(catalog: Catalog) -> None:
    for number in range(5):
        give(catalog, f"run {number}", NOW - 100 + number, NOW - 50)
    assert forget_runs(catalog, 3, NOW) == 2
    assert {lease.run for lease in list_runs(catalog, None, None)[0]} == {"run 2", "run 3", "run 4"}


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


def test_what_is_forgotten_of_a_run_is_of_one_model_and_version(catalog: Catalog) -> None:
    give(catalog, "a", NOW - 100, NOW - 50)
    for run in ("a", "b"):
        give(catalog, run, NOW, NOW + 900, "other")
    scored = {("a", "m", 1): NOW - 100, ("a", "m", 2): NOW, ("a", "other", 1): NOW}
    write_activity(catalog, [], [RunStatistics(*key, last_seen=seen_at) for key, seen_at in scored.items()])
    assert forget_runs(catalog, 2, NOW) == 1
    leases, statistics = list_runs(catalog, None, None)
    assert {(lease.run, lease.model) for lease in leases} == {("a", "other"), ("b", "other")}
    assert {part.key for part in statistics} == {("a", "m", 2), ("a", "other", 1)}
