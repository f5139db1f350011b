"""The catalog as one JSON file, and back, whichever database it is in. (Artifacts are files: copy those as files.)"""

from __future__ import annotations

import errno
import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, delete, func, insert, select, update
from sqlalchemy.exc import OperationalError, StatementError

from rm_server.errors import AlreadyExists, CatalogUnavailable, InvalidRequest
from rm_server.registry import queries
from rm_server.registry.catalog import Catalog
from rm_server.registry.change import Change
from rm_server.registry.tables import UtcDateTime, metadata, models, runs, state

FORMAT = "rm-catalog 1"
_PARTS = {"schema": str, "revision": int, "tables": dict}


def back_up(catalog: Catalog, path: Path) -> int:
    """Writes the catalog at one revision, and returns that. A file of this name is replaced in one step.

    Servers may go on meanwhile. Raises CatalogUnavailable when the database has a newer schema than this program knows;
    OSError when the file cannot be written.
    """
    database = catalog.database
    if database.schema not in database.known_schemas:
        raise CatalogUnavailable(
            f"The catalog has schema {database.schema}, made by a newer release: this one would leave out what it does "
            "not know. Back up with that release."
        )
    with database.reading() as connection:
        revision = queries.revision(connection)
        content = {
            "format": FORMAT,
            "schema": database.schema,
            "revision": revision,
            "tables": {
                table.name: [_to_json(row) for row in connection.execute(select(table)).mappings()]
                for table in _tables()
            },
        }
    _write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return revision


def restore(catalog: Catalog, path: Path, actor: str, comment: str = "", *, replaces: bool = False) -> int:
    """Makes the catalog what it was at a backup, in one transaction, and returns the backup's revision.

    Version numbers that have been given since stay used. The history is the backup's, and a line about this.
    Versions whose files are missing then: `home.missing_artifacts`.

    Raises AlreadyExists when the catalog is not empty, unless ``replaces``; InvalidRequest for a file that is no
    backup, is damaged or is from a newer release.
    """
    content = _read(path)
    if content["schema"] not in catalog.database.known_schemas:
        raise InvalidRequest(f"{path} has schema {content['schema']}, of a newer release. Restore with that release.")
    with catalog.changing(actor, comment) as change:
        revision = queries.revision(change.connection)
        if revision and not replaces:
            raise AlreadyExists(
                f"The catalog is not empty: it has had {revision} changes. Back it up first, then say with --replace "
                "that the backup shall replace it."
            )
        try:
            _replace_all(change, content["tables"])
        except OperationalError:
            raise  # the database's trouble, not the file's
        except (StatementError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidRequest(f"{path} is damaged; nothing was changed. {error}") from error
        # Above both, so that whoever watches the revision sees a change, and history's revisions stay unique.
        change.connection.execute(update(state).values(revision=max(revision, content["revision"])))
        _renew_run_revisions(change)
        change.record("restore", "", 0, f"revision {content['revision']} from {path.name}")
    return int(content["revision"])


def _tables() -> list[Table]:
    """In an order in which rows can be inserted; `catalog_state` stays the database's own."""
    return [table for table in metadata.sorted_tables if table is not state]


def _replace_all(change: Change, tables: dict[str, list[dict[str, Any]]]) -> None:
    connection = change.connection
    given = {row.name: row.next_version for row in connection.execute(select(models))}
    for table in reversed(_tables()):
        connection.execute(delete(table))
    for table in _tables():
        if rows := tables.get(table.name):
            connection.execute(insert(table), [_from_json(table, row) for row in rows])
    _continue_sequences(connection)
    for name, next_version in given.items():
        known = connection.scalar(select(models.c.next_version).where(models.c.name == name))
        if known is None:
            connection.execute(insert(models).values(name=name, next_version=next_version))
        elif known < next_version:
            connection.execute(update(models).where(models.c.name == name).values(next_version=next_version))


def _continue_sequences(connection: Connection) -> None:
    """PostgreSQL counts on from where it was, and would give ids that the restored rows have already."""
    if connection.dialect.name != "postgresql":
        return
    for table in _tables():
        if (counted := table.autoincrement_column) is not None:
            highest = connection.scalar(select(func.max(counted))) or 0
            sequence = func.pg_get_serial_sequence(table.name, counted.name)
            connection.execute(select(func.setval(sequence, highest + 1, False)))


def _renew_run_revisions(change: Change) -> None:
    """What runs have now is a change for every server, whatever it was told before."""
    connection = change.connection
    known = connection.scalar(select(state.c.run_revision)) or 0
    newest = connection.scalar(select(func.max(runs.c.revision))) or 0
    number = max(known, newest) + 1
    connection.execute(update(runs).values(revision=number))
    connection.execute(update(state).values(run_revision=number))


def _to_json(row: Any) -> dict[str, Any]:
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}


def _from_json(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: datetime.fromisoformat(value) if isinstance(table.c[name].type, UtcDateTime) else value
        for name, value in row.items()
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} cannot be read as a backup: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InvalidRequest(f"{path} is no backup of a catalog: {FORMAT!r} is expected as its format.")
    if wrong := [name for name, kind in _PARTS.items() if not isinstance(content.get(name), kind)]:
        raise InvalidRequest(f"{path} is damaged; nothing was changed. It has no {' and no '.join(wrong)} as expected.")
    return content


def _write_whole(path: Path, text: str) -> None:
    """Never half a backup under its name, and on disk when this returns."""
    if path.is_dir():  # of which some have no name to write beside
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
