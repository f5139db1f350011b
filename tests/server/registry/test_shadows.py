"""Shadows in the catalog: set, changed, ended, kept from deletion; their pairs are the newest ones."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from rm_server.errors import InvalidRequest, ModelNotFound, VersionInUse, VersionNotFound
from rm_server.registry.artifacts import ArtifactStore
from rm_server.registry.catalog import Catalog
from rm_server.registry.shadows import ShadowPair, add_pairs, pairs_of, remove_shadow, set_shadow

TIME = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture
def two(home: tuple[Catalog, ArtifactStore]) -> Catalog:
    """Model m with two versions, and a composite as the third."""
    catalog, _ = home
    for number, kind in enumerate(("rules", "rules", "composite"), start=1):
        catalog.register("m", f"{number:064x}", kind, 0, "me")
    return catalog


def pair(number: int, **fields: Any) -> ShadowPair:
    return ShadowPair(
        **{
            "model": "m",
            "shadow_version": 2,
            "version": 1,
            "time": TIME,
            "run": "r",
            "group_key": "g",
            "score": float(number),
            "shadow_score": 0.0,
        }
        | fields
    )


def test_a_shadow_is_in_the_snapshot_and_in_the_history(two: Catalog) -> None:
    made = set_shadow(two, "m", 2, 0.1, "me", "is it better?")
    assert two.snapshot().shadows == {("m", 2): made}
    (change, *_) = two.history("m")
    assert (change.action, change.version, change.detail, change.comment) == (
        "set_shadow",
        2,
        "share 0.1",
        "is it better?",
    )


def test_another_share_changes_the_shadow_and_the_same_one_nothing(two: Catalog) -> None:
    made = set_shadow(two, "m", 2, 0.1, "me")
    revision = two.revision()
    assert set_shadow(two, "m", 2, 0.1, "me") == made
    assert two.revision() == revision
    assert set_shadow(two, "m", 2, 0.5, "me").create_time == made.create_time
    assert two.snapshot().shadows["m", 2].share == 0.5
    assert two.revision() == revision + 1
    assert set_shadow(two, "m", 2, 1.0, "me").share == 1.0


def test_a_new_share_is_of_one_shadow_alone(two: Catalog) -> None:
    two.register("other", "a" * 64, "rules", 0, "me")
    made = {(model, version): set_shadow(two, model, version, 0.1, "me") for model, version in [("m", 1), ("other", 1)]}
    made["m", 2] = set_shadow(two, "m", 2, 0.3, "me")
    made["m", 2] = set_shadow(two, "m", 2, 0.1, "me")
    assert two.snapshot().shadows == made
    assert list(two.snapshot().shadows) == [("m", 1), ("m", 2), ("other", 1)]
    remove_shadow(two, "m", 1, "me")
    del made["m", 1]
    assert two.snapshot().shadows == made


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan"), float("inf")])
def test_a_share_that_is_none_is_refused(two: Catalog, share: float) -> None:
    with pytest.raises(InvalidRequest, match="above 0 and at most 1"):
        set_shadow(two, "m", 2, share, "me")


def test_what_is_not_there_cannot_shadow(two: Catalog) -> None:
    with pytest.raises(VersionNotFound):
        set_shadow(two, "m", 9, 0.1, "me")
    with pytest.raises(ModelNotFound):
        set_shadow(two, "other", 1, 0.1, "me")


def test_an_end_is_in_the_history_and_what_is_no_shadow_has_none(two: Catalog) -> None:
    two.register("other", "a" * 64, "rules", 0, "me")
    for model, version in (("m", 1), ("m", 2), ("other", 1)):
        set_shadow(two, model, version, 0.1, "me")
    revision = two.revision()
    remove_shadow(two, "m", 2, "ann", "it is worse")
    assert two.revision() == revision + 1
    (change, *_) = two.history("m")
    assert (change.action, change.version, change.actor, change.comment) == ("remove_shadow", 2, "ann", "it is worse")
    with pytest.raises(VersionNotFound, match=r"m@2 is no shadow\. Shadows of 'm': 1\."):
        remove_shadow(two, "m", 2, "me")
    with pytest.raises(VersionNotFound, match="no version 9"):
        remove_shadow(two, "m", 9, "me")
    assert two.revision() == revision + 1


def test_a_shadow_is_not_deleted_and_its_pairs_stay_until_the_version_goes(two: Catalog) -> None:
    set_shadow(two, "m", 2, 0.1, "me")
    add_pairs(two, [pair(1)], 10)
    with pytest.raises(VersionInUse, match="shadow"):
        two.delete_version("m", 2, "me")
    remove_shadow(two, "m", 2, "me")
    assert two.snapshot().shadows == {}
    assert len(pairs_of(two, "m", 2)[0]) == 1
    with pytest.raises(VersionNotFound, match="is no shadow"):
        remove_shadow(two, "m", 2, "me")
    two.delete_version("m", 2, "me")
    two.register("n", f"{9:064x}", "rules", 0, "me")
    with two.database.reading() as connection:
        assert connection.exec_driver_sql("select count(*) from shadow_pairs").scalar_one() == 0


def test_pairs_come_back_as_they_were_with_the_version_that_has_most(two: Catalog) -> None:
    first = [pair(1, prompt="p", completion="ü"), pair(2, run="")]
    add_pairs(two, [*first, pair(3, version=3)], 10)
    assert pairs_of(two, "m", 2) == (first, {1: 2, 3: 1})
    assert pairs_of(two, "m", 2, 3)[0] == [pair(3, version=3)]
    assert pairs_of(two, "m", 1) == ([], {})
    add_pairs(two, [pair(4, model="other"), pair(5, model="other")], 10)
    assert pairs_of(two, "m", 2) == (first, {1: 2, 3: 1})
    add_pairs(two, [], 10)
    assert pairs_of(two, "m", 2) == (first, {1: 2, 3: 1})


def test_what_is_not_there_has_no_pairs(two: Catalog) -> None:
    with pytest.raises(VersionNotFound, match="no version 9"):
        pairs_of(two, "m", 9)
    with pytest.raises(VersionNotFound, match="no version 9"):
        pairs_of(two, "m", 2, 9)


def test_the_newest_of_each_pair_of_versions_stay(two: Catalog) -> None:
    add_pairs(two, [pair(7, version=3)] + [pair(number) for number in range(3)], 4)
    add_pairs(two, [pair(number) for number in range(3, 6)], 4)
    assert [kept.score for kept in pairs_of(two, "m", 2, 1)[0]] == [2.0, 3.0, 4.0, 5.0]
    assert [kept.score for kept in pairs_of(two, "m", 2, 3)[0]] == [7.0]


def test_two_shadows_beside_one_version_have_pairs_of_their_own(two: Catalog) -> None:
    by_shadow = {shadow: [pair(number, shadow_version=shadow) for number in range(3)] for shadow in (2, 3)}
    for pairs in by_shadow.values():
        add_pairs(two, pairs, 3)
    for shadow, pairs in by_shadow.items():
        assert pairs_of(two, "m", shadow) == (pairs, {1: 3})


def test_pairs_change_neither_revision_nor_history(two: Catalog) -> None:
    revision = two.revision()
    add_pairs(two, [pair(1)], 10)
    assert two.revision() == revision
