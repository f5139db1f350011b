"""kill -9 at 50 random moments of registering, moving a label and migrating, on each kind of database.

After each: the catalog is whole, every version it names has whole files, nothing is half registered, what was committed
is there, and a server that starts on it serves.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from killed_homes import (
    IN_ARTIFACTS,
    IN_CATALOG,
    IN_MIGRATION,
    check_home,
    count_lines,
    kill_at_a_line,
    kill_from_outside,
    start,
)
from postgresql import postgresql, postgresql_url  # noqa: F401, fixtures
from rm_api.v1 import models_pb2
from running_server import running
from sqlalchemy import Connection, NullPool, create_engine, insert, inspect, select, text

from rm_server.registry.catalog import Catalog
from rm_server.registry.database import MIGRATIONS
from rm_server.registry.home import Home, open_home, sweep_artifacts
from rm_server.registry.tables import metadata

NUM_ROUNDS, NUM_MIGRATIONS = 35, 15  # 50 kills
WAYS = ("register", "label", "outside")
FIRST_SCHEMA = "0001"


@pytest.fixture(params=["sqlite", "postgresql"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    """An empty home, with a file of its own or a database elsewhere."""
    url = str(request.getfixturevalue("postgresql_url")) if request.param == "postgresql" else ""
    return Home(tmp_path / "home", url)


@pytest.fixture
def moments() -> random.Random:
    """Other moments in every run; the seed is printed when the test fails."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)


def check_serves(home: Home) -> None:
    """A server starts on the home and scores by the label, if it came to one."""
    catalog, _ = open_home(home)
    is_labelled = ("m", "stable") in catalog.snapshot().labels
    catalog.close()
    with running(home.path, catalog_url=home.catalog) as server:
        server.models.ListModels(models_pb2.ListModelsRequest())
        if is_labelled:
            response = server.score("m@stable", "one two three", "and one word more")
            assert [result.score.value for result in response.results] == [1.0, 0.0]


def test_killed_while_versions_are_registered_and_labelled(home: Home, moments: random.Random) -> None:
    catalog, artifacts = open_home(home)
    catalog.close()
    lines = {way: count_lines(way, home, 3) for way in (IN_ARTIFACTS, IN_CATALOG)}
    kills: dict[str, Callable[[], set[int]]] = {
        "register": partial(kill_at_a_line, IN_ARTIFACTS, lines[IN_ARTIFACTS], home, moments),
        "label": partial(kill_at_a_line, IN_CATALOG, lines[IN_CATALOG], home, moments),
        "outside": partial(kill_from_outside, home, moments),
    }
    known: set[int] = set()
    found: Counter[str] = Counter()
    for number in range(NUM_ROUNDS):
        committed = kills[WAYS[number % len(WAYS)]]()
        found["half copied"] += len(list((artifacts.root / ".incoming").iterdir()))
        catalog, artifacts = check_home(home)
        versions = set(catalog.snapshot().versions_of("m"))
        assert known | committed <= versions, "what was committed is there"
        known = versions
        found["unnamed"] += len(sweep_artifacts(catalog, artifacts))
        found["unlabelled"] += catalog.snapshot().labels.get(("m", "stable"), 0) != max(versions, default=0)
        assert len(artifacts.digests()) == len({r.digest for r in catalog.snapshot().versions.values()})
        catalog.close()
        check_serves(home)
    # Otherwise the kills came when nothing was under way, and this test shows nothing.
    assert found["half copied"] > 0, found
    assert found["unnamed"] + found["unlabelled"] > 0, found


def test_killed_while_an_older_catalog_is_migrated(home: Home, moments: random.Random) -> None:
    catalog, _ = open_home(home)
    assert start(home, "ann", 2).wait(timeout=60) == 0
    before = catalog.snapshot(), catalog.history()
    older = OlderDatabase(home, catalog)
    catalog.close()
    older.put_in_place()
    num_lines = count_lines(IN_MIGRATION, home, 0)
    num_unfinished = 0
    for _ in range(NUM_MIGRATIONS):
        older.put_in_place()
        kill_at_a_line(IN_MIGRATION, num_lines, home, moments, rounds=0)
        num_unfinished += older.schema() == FIRST_SCHEMA
        catalog, _ = check_home(home)
        assert older.schema() == max(catalog.database.known_schemas)
        assert (catalog.snapshot(), catalog.history()) == before
        catalog.close()
        check_serves(home)
    # Otherwise every kill came when all was done already.
    assert num_unfinished > 0


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
