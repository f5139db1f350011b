"""A backup holds everything, and what was given out since is not given out again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from postgresql import has_postgresql
from sqlalchemy import Boolean, Float, Integer, String, Table, func, insert, select, text
from sqlalchemy.types import TypeEngine

from rm_server.errors import AlreadyExists, CatalogUnavailable, InvalidRequest
from rm_server.registry.backup import back_up, restore
from rm_server.registry.catalog import Catalog
from rm_server.registry.records import CalibrationRecord, Snapshot
from rm_server.registry.run_records import Lease
from rm_server.registry.runs import assign_run, changed_runs, end_runs, find_run, look, write_activity
from rm_server.registry.tables import UtcDateTime, metadata, runs, state

A, B, C = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """With a bit of everything."""
    catalog = Catalog(f"sqlite:///{tmp_path}/catalog.db")
    for digest in (A, B):
        catalog.register("m", digest, "rules", 7, "ann", "why é")
    catalog.set_label("m", "stable", 1, "ann")
    catalog.set_label("m", "stable", 2, "ann")
    catalog.set_wanted("m", 2, True, "ann", precision="bf16")
    catalog.set_calibration("m", 2, CalibrationRecord(C, 1 / 3, -1e-30), "ann")
    catalog.file_evaluation("m", 2, "held_out", '{"accuracy": 0.7}', "ann")
    return catalog


@pytest.fixture
def empty(tmp_path: Path) -> Catalog:
    return Catalog(f"sqlite:///{tmp_path}/empty.db")


def content(snapshot: Snapshot) -> tuple[object, ...]:
    return dict(snapshot.versions), dict(snapshot.labels), snapshot.wanted, dict(snapshot.wanted_precision)


def test_everything_comes_back(catalog: Catalog, empty: Catalog, tmp_path: Path) -> None:
    assert back_up(catalog, tmp_path / "backup.json") == 7
    assert restore(empty, tmp_path / "backup.json", "bob", "the disk died") == 7
    assert content(empty.snapshot()) == content(catalog.snapshot())
    assert empty.evaluations("m", 2) == catalog.evaluations("m", 2)
    assert empty.history()[1:] == catalog.history()
    line = empty.history(limit=1)[0]
    assert (line.revision, line.actor, line.action) == (8, "bob", "restore")
    assert (line.detail, line.comment) == ("revision 7 from backup.json", "the disk died")
    assert empty.rollback("m", "stable", "bob") == (2, 1)


def test_a_catalog_that_is_in_use_is_replaced_only_when_that_is_said(catalog: Catalog, tmp_path: Path) -> None:
    back_up(catalog, tmp_path / "backup.json")
    before = content(catalog.snapshot())
    catalog.set_label("m", "canary", 1, "ann")
    with pytest.raises(AlreadyExists, match="it has had 8 changes"):
        restore(catalog, tmp_path / "backup.json", "bob")
    assert ("m", "canary") in catalog.snapshot().labels
    restore(catalog, tmp_path / "backup.json", "bob", replaces=True)
    assert content(catalog.snapshot()) == before
    assert catalog.revision() == 9


def test_numbers_given_since_the_backup_stay_used(catalog: Catalog, tmp_path: Path) -> None:
    back_up(catalog, tmp_path / "backup.json")
    catalog.register("m", C, "rules", 0, "ann")
    catalog.register("new", A, "rules", 0, "ann")
    restore(catalog, tmp_path / "backup.json", "bob", replaces=True)
    assert catalog.snapshot().versions_of("m") == (1, 2)
    assert catalog.register("m", "d" * 64, "rules", 0, "ann")[0].version == 4
    assert catalog.register("new", B, "rules", 0, "ann")[0].version == 2


def test_each_model_goes_on_from_the_higher_number_of_backup_and_catalog(
    catalog: Catalog, empty: Catalog, tmp_path: Path
) -> None:
    for model, digest in (("m", C), ("n", A)):
        catalog.register(model, digest, "rules", 0, "ann")
    back_up(catalog, tmp_path / "backup.json")  # m has three versions, n one
    for model, digest in (("m", A), ("n", A), ("n", B)):
        empty.register(model, digest, "rules", 0, "ann")
    restore(empty, tmp_path / "backup.json", "bob", replaces=True)
    assert [empty.register(model, "d" * 64, "rules", 0, "ann")[0].version for model in ("m", "n")] == [4, 3]


def test_what_runs_have_after_a_restore_is_news_to_every_server(catalog: Catalog, tmp_path: Path) -> None:
    assign_run(catalog, Lease("exp-17", "m", 1, A, None, 900.0, 1000.0, 1900.0), None)
    back_up(catalog, tmp_path / "backup.json")
    end_runs(catalog, "exp-17", None, 1100.0)
    told = look(catalog, 1200.0).run_revision
    restore(catalog, tmp_path / "backup.json", "bob", replaces=True)
    assert look(catalog, 1200.0).run_revision > told
    assert [lease.has_ended for lease in changed_runs(catalog, told)] == [False]


def test_after_a_restore_a_sign_of_life_is_of_its_own_run(catalog: Catalog, tmp_path: Path) -> None:
    catalog.register("other", C, "rules", 0, "ann")
    for run, model in (("a", "m"), ("b", "m"), ("a", "other")):
        assign_run(catalog, Lease(run, model, 1, A, None, 900.0, 1000.0, 1900.0), None)
    back_up(catalog, tmp_path / "backup.json")
    restore(catalog, tmp_path / "backup.json", "bob", replaces=True)
    seen, *others = (find_run(catalog, run, model) for run, model in (("a", "m"), ("b", "m"), ("a", "other")))
    assert seen is not None
    alive = replace(seen, last_seen=1100.0, expires_at=2000.0)
    write_activity(catalog, [alive], [])
    assert [find_run(catalog, run, model) for run, model in (("a", "m"), ("b", "m"), ("a", "other"))] == [
        alive,
        *others,
    ]


@pytest.mark.parametrize(
    "damage", [{"digest": None}, {"version": 2}, {"model": "x"}, {"create_time": "soon"}, {"unknown": 1}]
)
def test_a_restore_that_fails_changes_nothing(catalog: Catalog, tmp_path: Path, damage: dict[str, object]) -> None:
    path = tmp_path / "backup.json"
    back_up(catalog, path)
    before = content(catalog.snapshot())
    broken = json.loads(path.read_text())
    broken["tables"]["versions"][0].update(damage)
    path.write_text(json.dumps(broken))
    with pytest.raises(InvalidRequest, match=r"backup\.json is damaged; nothing was changed"):
        restore(catalog, path, "bob", replaces=True)
    assert content(catalog.snapshot()) == before
    assert catalog.revision() == 7


def test_trouble_of_the_database_is_not_laid_to_the_backup(catalog: Catalog, tmp_path: Path) -> None:
    path = tmp_path / "backup.json"
    back_up(catalog, path)
    with catalog.database.writing() as connection:
        connection.execute(text("ALTER TABLE labels RENAME TO elsewhere"))
    with pytest.raises(CatalogUnavailable, match="no such table: labels"):
        restore(catalog, path, "bob", replaces=True)
    assert catalog.revision() == 7


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "rm-catalog 2"}'])
def test_what_is_no_backup_is_refused(empty: Catalog, tmp_path: Path, text: str) -> None:
    (tmp_path / "backup.json").write_text(text)
    with pytest.raises(InvalidRequest, match="backup"):
        restore(empty, tmp_path / "backup.json", "bob")
    with pytest.raises(InvalidRequest, match="cannot be read"):
        restore(empty, tmp_path / "missing.json", "bob")


def test_a_backup_in_another_format_is_refused(catalog: Catalog, empty: Catalog, tmp_path: Path) -> None:
    path = tmp_path / "backup.json"
    back_up(catalog, path)
    content = json.loads(path.read_text())
    assert content["format"] == "rm-catalog 1"
    path.write_text(json.dumps(content | {"format": "rm-catalog 2"}))
    with pytest.raises(InvalidRequest, match="'rm-catalog 1' is expected as its format"):
        restore(empty, path, "bob")
    assert empty.revision() == 0


@pytest.mark.parametrize("part", ["schema", "revision", "tables"])
def test_a_backup_that_lacks_a_part_is_damaged(catalog: Catalog, empty: Catalog, tmp_path: Path, part: str) -> None:
    path = tmp_path / "backup.json"
    back_up(catalog, path)
    content = json.loads(path.read_text())
    for damaged in ({name: content[name] for name in content if name != part}, content | {part: []}):
        path.write_text(json.dumps(damaged))
        with pytest.raises(InvalidRequest, match=f"is damaged; nothing was changed. It has no {part}"):
            restore(empty, path, "bob")
    assert empty.revision() == 0


def test_neither_way_crosses_to_a_schema_that_is_not_known(catalog: Catalog, empty: Catalog, tmp_path: Path) -> None:
    path = tmp_path / "backup.json"
    back_up(catalog, path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"schema": "9999"}))
    with pytest.raises(InvalidRequest, match="schema 9999, of a newer release"):
        restore(empty, path, "bob")
    with empty.database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(CatalogUnavailable, match="schema 9999, made by a newer release"):
        back_up(Catalog(f"sqlite:///{tmp_path}/empty.db"), path)


def test_a_backup_is_there_as_a_whole(catalog: Catalog, tmp_path: Path) -> None:
    path = tmp_path / "backup.json"
    path.write_text("the last one")
    back_up(catalog, path)
    assert json.loads(path.read_text())["revision"] == 7
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


@pytest.mark.parametrize("place", [".", "/", "backups"])
def test_a_folder_is_no_place_for_a_backup(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "backups").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IsADirectoryError):
        back_up(catalog, Path(place))
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


# --- every table, on either database ---

TIME = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def fill_every_table(catalog: Catalog) -> dict[str, list[tuple[object, ...]]]:
    """Two more rows in each table, whatever tables there are; all that is in them then."""
    with catalog.database.writing() as connection:
        for table in metadata.sorted_tables:
            if table is not state:
                connection.execute(insert(table), [_row(table, number) for number in (1, 2)])
    return all_rows(catalog)


def _row(table: Table, number: int) -> dict[str, object]:
    """Values that keep every foreign key: columns that refer have what the row ``number`` of the other table has."""
    return {
        column.name: _value(column.name, column.type, number)
        for column in table.columns
        if column is not table.autoincrement_column
    }


def _value(name: str, kind: TypeEngine[Any], number: int) -> object:
    if isinstance(kind, UtcDateTime):
        return TIME + timedelta(seconds=number)
    if isinstance(kind, Boolean):
        return number % 2 == 0
    if isinstance(kind, Float):
        return number / 3
    if isinstance(kind, Integer):
        return 100 + number
    is_digest = name in ("digest", "calibration_digest")
    text = f"{number:064x}" if is_digest else f"{'m' if name in ('name', 'model', 'part_model') else name} ü{number}"
    return text[: kind.length] if isinstance(kind, String) and kind.length else text


def all_rows(catalog: Catalog) -> dict[str, list[tuple[object, ...]]]:
    with catalog.database.reading() as connection:
        return {
            # `runs.revision` is new after a restore: for servers that is a change of what runs have.
            table.name: sorted(
                (tuple(row) for row in connection.execute(select(*(c for c in table.c if c is not runs.c.revision)))),
                key=repr,
            )
            for table in metadata.sorted_tables
            if table is not state
        }


@pytest.fixture(params=["sqlite", "postgresql"] if has_postgresql() else ["sqlite"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    """Another empty catalog, to restore into."""
    url = f"sqlite:///{tmp_path}/target.db"
    if request.param == "postgresql":
        url = str(request.getfixturevalue("postgresql_url"))
    catalog = Catalog(url)
    yield catalog
    catalog.close()


def test_every_table_is_in_a_backup_and_comes_back(empty: Catalog, target: Catalog, tmp_path: Path) -> None:
    written = fill_every_table(empty)
    assert all(written.values()), "each table has rows, or the test shows nothing of it"
    for source, other, file in ((empty, target, "there.json"), (target, empty, "back.json")):
        back_up(source, tmp_path / file)
        restore(other, tmp_path / file, "bob", replaces=True)
    both = all_rows(empty)
    assert {name: rows for name, rows in both.items() if name != "history"} == {
        name: rows for name, rows in written.items() if name != "history"
    }
    assert set(written["history"]) < set(both["history"])


def test_rows_that_come_after_a_restore_get_ids_of_their_own(empty: Catalog, target: Catalog, tmp_path: Path) -> None:
    fill_every_table(empty)
    back_up(empty, tmp_path / "backup.json")
    restore(target, tmp_path / "backup.json", "bob")
    counted = [
        table for table in metadata.sorted_tables if table.autoincrement_column is not None and table is not state
    ]
    assert counted
    for table in counted:
        with target.database.writing() as connection:
            connection.execute(insert(table), [_row(table, 3)])
            assert connection.scalar(select(func.count()).select_from(table)) == 3
