"""kill -9 at random moments of registering, moving a label and migrating, and what each kill left."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, NullPool, create_engine, insert, inspect, select, text

from bench.storms.killed_homes import (
    IN_ARTIFACTS,
    IN_CATALOG,
    IN_MIGRATION,
    check,
    check_home,
    count_lines,
    kill_at_a_line,
    kill_from_outside,
    start,
)
from rm_server.registry.catalog import Catalog
from rm_server.registry.database import MIGRATIONS
from rm_server.registry.home import Home, open_home, sweep_artifacts
from rm_server.registry.tables import metadata

FIRST_SCHEMA = "0001"

CheckServes = Callable[[Home], None]
"""Raises unless a server that starts on the home serves."""


@dataclass
class Kill:
    """One kill: what was under way, and what was found afterwards."""

    during: str
    is_half_copied: bool = False
    is_unnamed: bool = False
    """Whole files were there that no version named yet."""
    is_unlabelled: bool = False
    """A version was there that the label did not name yet."""
    is_unmigrated: bool = False
    problem: str = ""
    """Why what it left is not consistent, with the traceback; else empty."""


def kill_registrations(home: Home, moments: random.Random, num_kills: int, check_serves: CheckServes) -> Iterator[Kill]:
    """Kills by turns while files are copied in, while a label moves, and from outside."""
    catalog, artifacts = open_home(home)
    catalog.close()
    lines = {way: count_lines(way, home, 3) for way in (IN_ARTIFACTS, IN_CATALOG)}
    ways: dict[str, Callable[[], set[int]]] = {
        "register": partial(kill_at_a_line, IN_ARTIFACTS, lines[IN_ARTIFACTS], home, moments),
        "label": partial(kill_at_a_line, IN_CATALOG, lines[IN_CATALOG], home, moments),
        "outside": partial(kill_from_outside, home, moments),
    }
    known: set[int] = set()
    for number in range(num_kills):
        kill = Kill(tuple(ways)[number % len(ways)])
        with _noting(kill):
            known |= ways[kill.during]()
            kill.is_half_copied = any((artifacts.root / ".incoming").iterdir())
            catalog, artifacts = check_home(home)
            snapshot = catalog.snapshot()
            versions = set(snapshot.versions_of("m"))
            check(known <= versions, f"committed, but not there: {known - versions}")
            known = versions
            kill.is_unnamed = bool(sweep_artifacts(catalog, artifacts))
            kill.is_unlabelled = snapshot.labels.get(("m", "stable"), 0) != max(versions, default=0)
            named = {record.digest for record in snapshot.versions.values()}
            check(set(artifacts.digests()) == named, f"files {artifacts.digests()}, versions of {named}")
            catalog.close()
            check_serves(home)
        yield kill


def kill_migrations(home: Home, moments: random.Random, num_kills: int, check_serves: CheckServes) -> Iterator[Kill]:
    """Kills while a catalog of the first schema is brought up to date; nothing in it may be lost."""
    catalog, _ = open_home(home)
    _, errors = start(home, "ann", 2).communicate(timeout=60)
    check(errors == "", f"The registrar says: {errors}")
    before = catalog.snapshot(), catalog.history()
    older = OlderDatabase(home, catalog)
    catalog.close()
    older.put_in_place()
    num_lines = count_lines(IN_MIGRATION, home, 0)
    for _ in range(num_kills):
        kill = Kill("migrate")
        with _noting(kill):
            older.put_in_place()
            kill_at_a_line(IN_MIGRATION, num_lines, home, moments, rounds=0)
            kill.is_unmigrated = older.schema() == FIRST_SCHEMA
            catalog, _ = check_home(home)
            newest = max(catalog.database.known_schemas)
            check(older.schema() == newest, f"schema {older.schema()} instead of {newest}")
            after = catalog.snapshot(), catalog.history()
            check(after == before, f"the catalog was {before}, and is {after}")
            catalog.close()
            check_serves(home)
        yield kill


class OlderDatabase:
    """The catalog of a home as the first release would have left it, with the same content."""

    def __init__(self, home: Home, catalog: Catalog) -> None:
        self._home = home
        with catalog.database.reading() as connection:
            self._rows = {table: connection.execute(select(table)).mappings().all() for table in metadata.sorted_tables}

    def put_in_place(self) -> None:
        """Replaces the database, whatever is in it."""
        for path in self._home.path.glob("catalog.db*"):
            path.unlink()
        with self._connected() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("DROP SCHEMA public CASCADE"))
                connection.execute(text("CREATE SCHEMA public"))
            config = Config(attributes={"connection": connection})
            config.set_main_option("script_location", str(MIGRATIONS))
            command.upgrade(config, FIRST_SCHEMA)
            connection.execute(text("DELETE FROM catalog_state"))
            tables = inspect(connection)
            for table, rows in self._rows.items():
                if rows and tables.has_table(table.name):
                    columns = {column["name"] for column in tables.get_columns(table.name)}
                    kept = [{name: value for name, value in row.items() if name in columns} for row in rows]
                    connection.execute(insert(table), kept)

    def schema(self) -> str | None:
        """The schema that the database has now."""
        with self._connected() as connection:
            return MigrationContext.configure(connection).get_current_revision()

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        with create_engine(self._home.catalog_url, poolclass=NullPool).begin() as connection:
            yield connection


@contextmanager
def _noting(kill: Kill) -> Iterator[None]:
    """Whatever is raised is a problem of the kill: a catalog that does not open is not consistent, either."""
    try:
        yield
    except Exception:
        kill.problem = traceback.format_exc()
