"""Every change is there as a whole, with its history; every refusal says what there is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from postgresql import has_postgresql

from rm_server.errors import (
    InvalidRequest,
    LabelNotFound,
    ModelNotFound,
    VersionChanged,
    VersionInUse,
    VersionNotFound,
)
from rm_server.registry.catalog import Catalog
from rm_server.registry.records import CalibrationRecord, HistoryRecord

A, B, C = "a" * 64, "b" * 64, "c" * 64
START = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@pytest.fixture(params=["sqlite", "postgresql"] if has_postgresql() else ["sqlite"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    """An empty catalog whose clock goes on by a second with every change."""
    url = f"sqlite:///{tmp_path}/catalog.db"
    if request.param == "postgresql":
        url = str(request.getfixturevalue("postgresql_url"))
    seconds = iter(range(1000))
    catalog = Catalog(url, clock=lambda: START + timedelta(seconds=next(seconds)))
    yield catalog
    catalog.close()


def last(catalog: Catalog) -> HistoryRecord:
    return catalog.history(limit=1)[0]


def register(catalog: Catalog, *digests: str, model: str = "m") -> None:
    for digest in digests:
        catalog.register(model, digest, "rules", 0, "ann")


# --- registering ---


def test_an_empty_catalog(catalog: Catalog) -> None:
    snapshot = catalog.snapshot()
    assert (snapshot.revision, dict(snapshot.versions), dict(snapshot.labels)) == (0, {}, {})
    assert catalog.history() == ()


def test_versions_are_numbered_per_model(catalog: Catalog) -> None:
    record, created = catalog.register("m", A, "sequence_classification", 512, "ann", "the first")
    assert created
    assert (record.key, record.digest, record.kind, record.max_tokens) == (("m", 1), A, "sequence_classification", 512)
    assert (record.created_by, record.comment, record.calibration) == ("ann", "the first", None)
    assert record.create_time == START + timedelta(seconds=0)
    assert record.create_time.tzinfo is UTC
    register(catalog, B)
    register(catalog, A, model="other/m")
    snapshot = catalog.snapshot()
    assert list(snapshot.versions) == [("m", 1), ("m", 2), ("other/m", 1)]
    assert snapshot.versions["m", 1] == record
    assert snapshot.models() == ("m", "other/m")
    assert snapshot.versions_of("m") == (1, 2)


def test_the_same_content_again_is_the_same_version(catalog: Catalog) -> None:
    record, _ = catalog.register("m", A, "rules", 0, "ann")
    assert catalog.register("m", A, "rules", 0, "bob", "again") == (record, False)
    assert catalog.revision() == 1
    assert len(catalog.history()) == 1


def test_a_number_is_never_used_again(catalog: Catalog) -> None:
    register(catalog, A, B)
    catalog.delete_version("m", 2, "ann")
    assert catalog.register("m", B, "rules", 0, "ann")[0].version == 3
    for version in (1, 3):
        catalog.delete_version("m", version, "ann")
    assert catalog.register("m", A, "rules", 0, "ann")[0].version == 4


@pytest.mark.parametrize(("model", "digest"), [("m@1", A), ("", A), ("m", "A" * 64), ("m", "short")])
def test_bad_names_and_digests_are_refused(catalog: Catalog, model: str, digest: str) -> None:
    with pytest.raises(InvalidRequest):
        catalog.register(model, digest, "rules", 0, "ann")
    assert catalog.revision() == 0


def test_somebody_makes_every_change(catalog: Catalog) -> None:
    with pytest.raises(InvalidRequest, match="needs an actor"):
        catalog.register("m", A, "rules", 0, "")
    assert catalog.revision() == 0


# --- history ---


def test_every_change_has_a_revision_and_a_line_of_history(catalog: Catalog) -> None:
    register(catalog, A, B)
    catalog.set_label("m", "stable", 1, "bob", "first")
    catalog.set_label("m", "stable", 2, "bob", "better")
    catalog.file_evaluation("m", 2, "held_out", "{}", "eve")
    catalog.set_calibration("m", 2, CalibrationRecord(C, 2.0, -0.5), "eve", "on v1's scale")
    catalog.set_wanted("m", 2, True, "bob", precision="bf16")
    catalog.remove_label("m", "stable", "bob")
    catalog.set_wanted("m", 2, False, "bob")
    catalog.delete_version("m", 1, "ann", "old")
    expected = [
        (10, "ann", "delete", 1, f"digest {A}", "old", "", 0),
        (9, "bob", "unload", 2, "", "", "", 0),
        (8, "bob", "remove_label", 0, "stable: 2 → none", "", "stable", 2),
        (7, "bob", "load", 2, "bf16", "", "", 0),
        (6, "eve", "set_calibration", 2, f"gain 2.0, bias -0.5, digest {C}", "on v1's scale", "", 0),
        (5, "eve", "file_evaluation", 2, "held_out", "", "", 0),
        (4, "bob", "set_label", 2, "stable: 1 → 2", "better", "stable", 1),
        (3, "bob", "set_label", 1, "stable: none → 1", "first", "stable", 0),
        (2, "ann", "register", 2, f"rules, digest {B}", "", "", 0),
        (1, "ann", "register", 1, f"rules, digest {A}", "", "", 0),
    ]
    seen = catalog.history("m")
    assert [
        (r.revision, r.actor, r.action, r.version, r.detail, r.comment, r.label, r.previous_version) for r in seen
    ] == expected
    assert [record.time for record in seen] == sorted((record.time for record in seen), reverse=True)
    assert catalog.revision() == 10


def test_history_is_of_one_model_or_all_and_as_long_as_asked(catalog: Catalog) -> None:
    register(catalog, A, B)
    register(catalog, A, model="n")
    assert [(record.model, record.revision) for record in catalog.history()] == [("n", 3), ("m", 2), ("m", 1)]
    assert [record.revision for record in catalog.history("m", limit=1)] == [2]
    with pytest.raises(ModelNotFound, match=r"no model 'x'\. There are: m, n\."):
        catalog.history("x")


# --- labels ---


def test_a_label_moves_and_says_what_it_named(catalog: Catalog) -> None:
    register(catalog, A, B)
    assert catalog.set_label("m", "stable", 1, "ann") is None
    assert catalog.set_label("m", "stable", 2, "ann") == 1
    assert catalog.set_label("m", "canary", 2, "ann") is None
    assert catalog.snapshot().labels == {("m", "stable"): 2, ("m", "canary"): 2}
    assert catalog.snapshot().labels_of("m") == {"canary": 2, "stable": 2}
    assert catalog.remove_label("m", "stable", "ann") == 2
    assert catalog.snapshot().labels == {("m", "canary"): 2}


def test_a_label_is_of_one_model(catalog: Catalog) -> None:
    for model in ("m", "other"):
        register(catalog, A, B, model=model)
    catalog.set_label("m", "stable", 1, "ann")
    catalog.set_label("m", "stable", 2, "ann")
    for take_back in (catalog.rollback, catalog.remove_label):
        with pytest.raises(LabelNotFound, match=r"'other' has no label 'stable'\. It has no labels\."):
            take_back("other", "stable", "bob")
    assert catalog.set_label("other", "stable", 2, "bob") is None
    assert catalog.set_label("other", "stable", 1, "bob") == 2
    assert catalog.snapshot().labels == {("m", "stable"): 2, ("other", "stable"): 1}
    assert catalog.rollback("other", "stable", "bob") == (1, 2)
    assert catalog.remove_label("m", "stable", "ann") == 2
    assert catalog.snapshot().labels == {("other", "stable"): 2}


def test_a_label_that_is_there_already_changes_nothing(catalog: Catalog) -> None:
    register(catalog, A)
    catalog.set_label("m", "stable", 1, "ann")
    assert catalog.set_label("m", "stable", 1, "bob") == 1
    assert catalog.revision() == 2


@pytest.mark.parametrize("label", ["", "7", "a b", "a@b"])
def test_a_bad_label_is_refused(catalog: Catalog, label: str) -> None:
    register(catalog, A)
    with pytest.raises(InvalidRequest, match="cannot be a label"):
        catalog.set_label("m", label, 1, "ann")


def test_what_is_not_there_is_answered_with_what_is(catalog: Catalog) -> None:
    with pytest.raises(ModelNotFound, match="There are none yet"):
        catalog.set_label("m", "stable", 1, "ann")
    register(catalog, A, B)
    with pytest.raises(VersionNotFound, match=r"'m' has no version 3\. There are: 1, 2\."):
        catalog.set_label("m", "stable", 3, "ann")
    with pytest.raises(LabelNotFound, match=r"'m' has no label 'stable'\. It has no labels\."):
        catalog.remove_label("m", "stable", "ann")
    catalog.set_label("m", "canary", 1, "ann")
    catalog.set_label("m", "best", 1, "ann")
    with pytest.raises(LabelNotFound, match=r"There are: best, canary\."):
        catalog.remove_label("m", "stable", "ann")
    with pytest.raises(ModelNotFound, match=r"no model 'nowhere'\. There are: m\."):
        catalog.remove_label("nowhere", "canary", "ann")
    assert catalog.revision() == 4


def test_rollback_goes_back_along_the_label_s_history(catalog: Catalog) -> None:
    register(catalog, A, B, C)
    for version in (1, 2, 3):
        catalog.set_label("m", "stable", version, "ann")
    catalog.set_label("m", "canary", 1, "ann")
    assert catalog.rollback("m", "stable", "bob", "3 is hacked") == (3, 2)
    assert catalog.snapshot().labels == {("m", "stable"): 2, ("m", "canary"): 1}
    assert (last(catalog).action, last(catalog).detail, last(catalog).comment) == (
        "rollback",
        "stable: 3 → 2",
        "3 is hacked",
    )
    assert catalog.rollback("m", "stable", "bob") == (2, 1)
    with pytest.raises(VersionNotFound, match="m@stable names 1, and no earlier version"):
        catalog.rollback("m", "stable", "bob")


def test_rollback_passes_over_deleted_versions(catalog: Catalog) -> None:
    for model in ("m", "other"):
        register(catalog, A, B, C, model=model)
    for version in (1, 2, 3):
        catalog.set_label("m", "stable", version, "ann")
    catalog.delete_version("m", 2, "ann")
    assert catalog.rollback("m", "stable", "bob") == (3, 1)


def test_a_promotion_moves_only_what_the_gate_saw(catalog: Catalog) -> None:
    register(catalog, A, B, C)
    assert catalog.promote("m", "stable", 1, "ann", expected=None, why="the gate allowed it") is None
    assert catalog.promote("m", "stable", 2, "ann", "more data", expected=1, why="the gate allowed it") == 1
    change = last(catalog)
    assert (change.action, change.comment) == ("promote", "more data")
    assert (change.detail, change.previous_version) == ("stable: 1 → 2; the gate allowed it", 1)
    for expected in (1, None):
        with pytest.raises(VersionChanged, match="moved meanwhile, to 2"):
            catalog.promote("m", "stable", 3, "ann", expected=expected, why="the gate allowed it")
    revision = catalog.revision()
    assert catalog.promote("m", "stable", 2, "ann", expected=2, why="it is there already") == 2
    assert (catalog.snapshot().labels, catalog.revision()) == ({("m", "stable"): 2}, revision)
    assert catalog.rollback("m", "stable", "bob") == (2, 1)


def test_rollback_needs_the_label(catalog: Catalog) -> None:
    register(catalog, A)
    with pytest.raises(LabelNotFound):
        catalog.rollback("m", "stable", "ann")


# --- deleting and wanting ---


def test_a_version_that_is_needed_is_not_deleted(catalog: Catalog) -> None:
    register(catalog, A)
    catalog.set_label("m", "stable", 1, "ann")
    catalog.set_label("m", "canary", 1, "ann")
    catalog.set_wanted("m", 1, True, "ann")
    with pytest.raises(VersionInUse, match="m@1 is named by the label canary, stable"):
        catalog.delete_version("m", 1, "ann")
    catalog.remove_label("m", "stable", "ann")
    catalog.remove_label("m", "canary", "ann")
    with pytest.raises(VersionInUse, match="m@1 is to be loaded"):
        catalog.delete_version("m", 1, "ann")
    catalog.set_wanted("m", 1, False, "ann")
    catalog.file_evaluation("m", 1, "held_out", "{}", "ann")
    assert catalog.delete_version("m", 1, "ann").digest == A
    assert dict(catalog.snapshot().versions) == {}
    with pytest.raises(VersionNotFound, match="It has no versions now"):
        catalog.delete_version("m", 1, "ann")


def test_what_shall_be_loaded_is_kept_with_its_precision(catalog: Catalog) -> None:
    register(catalog, A, B)
    catalog.set_wanted("m", 1, True, "ann")
    catalog.set_wanted("m", 2, True, "ann", precision="bf16")
    snapshot = catalog.snapshot()
    assert snapshot.wanted == {("m", 1), ("m", 2)}
    assert snapshot.wanted_precision == {("m", 2): "bf16"}
    revision = catalog.revision()
    catalog.set_wanted("m", 2, True, "ann", precision="bf16")
    assert catalog.revision() == revision
    catalog.set_wanted("m", 2, False, "ann")
    snapshot = catalog.snapshot()
    assert (snapshot.wanted, snapshot.wanted_precision) == ({("m", 1)}, {})
    with pytest.raises(VersionNotFound):
        catalog.set_wanted("m", 3, True, "ann")


# --- what is filed with a version ---


def test_evaluations_are_filed_by_name(catalog: Catalog) -> None:
    register(catalog, A)
    assert catalog.evaluations("m", 1) == ()
    catalog.file_evaluation("m", 1, "held_out", '{"accuracy": 0.7}', "ann")
    catalog.file_evaluation("m", 1, "ratings", '{"pearson": 0.5}', "ann")
    catalog.file_evaluation("m", 1, "held_out", '{"accuracy": 0.8}', "ann")
    filed = catalog.evaluations("m", 1)
    assert [(e.name, e.report_json) for e in filed] == [
        ("held_out", '{"accuracy": 0.8}'),
        ("ratings", '{"pearson": 0.5}'),
    ]
    assert filed[0].create_time > filed[1].create_time
    with pytest.raises(VersionNotFound):
        catalog.evaluations("m", 2)
    with pytest.raises(VersionNotFound):
        catalog.file_evaluation("m", 2, "held_out", "{}", "ann")


@pytest.mark.parametrize(("name", "report"), [("x", ""), ("x", "[]"), ("x", "{"), ("", "{}"), ("x" * 201, "{}")])
def test_what_is_no_report_is_refused(catalog: Catalog, name: str, report: str) -> None:
    register(catalog, A)
    with pytest.raises(InvalidRequest):
        catalog.file_evaluation("m", 1, name, report, "ann")


def test_a_calibration_keeps_every_bit(catalog: Catalog) -> None:
    register(catalog, A)
    calibration = CalibrationRecord(B, 1 / 3, -math.pi * 1e-30)
    catalog.set_calibration("m", 1, calibration, "ann")
    assert catalog.snapshot().versions["m", 1].calibration == calibration
    catalog.set_calibration("m", 1, calibration, "ann")
    assert catalog.revision() == 2
    catalog.set_calibration("m", 1, replace(calibration, bias=1.0), "ann")
    assert catalog.snapshot().versions["m", 1].calibration == replace(calibration, bias=1.0)


@pytest.mark.parametrize(("gain", "bias"), [(0.0, 0.0), (math.nan, 0.0), (math.inf, 0.0), (1.0, math.nan)])
def test_what_is_no_calibration_is_refused(catalog: Catalog, gain: float, bias: float) -> None:
    register(catalog, A)
    with pytest.raises(InvalidRequest, match="finite gain other than 0"):
        catalog.set_calibration("m", 1, CalibrationRecord(B, gain, bias), "ann")


# --- snapshots ---


def test_a_snapshot_stays_as_it_was(catalog: Catalog) -> None:
    register(catalog, A)
    before = catalog.snapshot()
    catalog.set_label("m", "stable", 1, "ann")
    assert (before.revision, dict(before.labels)) == (1, {})
    with pytest.raises(TypeError):
        before.labels["m", "stable"] = 1  # type: ignore[index]
    assert catalog.snapshot().revision == catalog.revision() == 2
