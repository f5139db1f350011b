"""The catalog's database: connections, transactions, migrations. What SQLite and PostgreSQL do differently is here."""

from __future__ import annotations

import fcntl
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, func, make_url, select, text
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, NotSupportedError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from rm_server.config import ConfigError
from rm_server.errors import CatalogUnavailable, InvalidRequest, RmError, StorageFull
from rm_server.registry.file_lock import lock
from rm_server.registry.tables import state

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_S = 10.0
"""Who wants to write waits so long for who writes."""
STUCK_AFTER_S = 60.0
"""Who stands still in the middle of writing, a server that was stopped for example, is rolled back by PostgreSQL."""
SILENCE_S = 5
"""A PostgreSQL that a broken network hides is given up after that, where its URL says nothing else (`connect_timeout`,
`tcp_user_timeout`, …); TCP by itself would wait for a quarter of an hour."""
_RETRY_AFTER_S = 1.0
# Any number, as long as every release uses the same: it names PostgreSQL's lock for "somebody migrates the catalog".
_ADVISORY_LOCK = 0x726D5F6170690001
_POSTGRESQL_DISK_FULL = "53100"
# Alembic keeps the running migration in module globals.
_one_migration_per_process = threading.Lock()


class Database:
    """One database, opened and brought to the present schema. Thread-safe.

    ``schema`` names the schema that it has; one that is not among ``known_schemas`` was made by a newer release.
    Raises ConfigError for a URL that names no database; CatalogUnavailable when it cannot be reached, or was written by
    a release that is too new. No message has the URL's password.
    """

    def __init__(self, url: str) -> None:
        self._url = _parsed(url)
        self._is_sqlite = self._url.get_backend_name() == "sqlite"
        self._engine = _sqlite_engine(self._url) if self._is_sqlite else _server_engine(self._url)
        self._scripts = ScriptDirectory(str(MIGRATIONS))
        self.known_schemas = frozenset(script.revision for script in self._scripts.walk_revisions())
        self.schema = self._migrate()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database, whatever others write meanwhile."""
        # SQLite's transactions always do.
        options = {} if self._is_sqlite else {"isolation_level": "REPEATABLE READ"}
        with (
            self._translated_errors(),
            self._engine.connect().execution_options(**options) as connection,
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that may change things; writers, of all processes, go one after the other.

        Commits at the end, rolls back on an exception. A kill at any moment leaves all of it or nothing.
        """
        with self._translated_errors(), self._writing_connection() as connection:
            if not self._is_sqlite:
                # For this transaction alone, and not as options of the connection: PgBouncer refuses those.
                limits_s = {"lock_timeout": BUSY_TIMEOUT_S, "idle_in_transaction_session_timeout": STUCK_AFTER_S}
                limits = [func.set_config(name, f"{limit * 1000:.0f}ms", True) for name, limit in limits_s.items()]
                connection.execute(select(*limits))
            connection.execute(select(state.c.revision).with_for_update()).one()
            yield connection

    def close(self) -> None:
        """Closes the pooled connections."""
        self._engine.dispose()

    @contextmanager
    def _writing_connection(self) -> Iterator[Connection]:
        with self._engine.connect().execution_options(begin="IMMEDIATE") as connection, connection.begin():
            yield connection

    def _migrate(self) -> str:
        """Runs the missing migrations in one transaction. Processes that open at once wait for each other."""
        head = max(self.known_schemas)
        with (
            _one_migration_per_process,
            self._translated_errors(),
            self._first_opening(),
            self._writing_connection() as connection,
        ):
            if not self._is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            current = MigrationContext.configure(connection).get_current_revision()
            if current is not None and current not in self.known_schemas:
                self._check_newer(connection, current, head)
                return current
            if current != head:
                config = Config(attributes={"connection": connection})
                config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
                command.upgrade(config, "head")
            return head

    def _check_newer(self, connection: Connection, current: str, head: str) -> None:
        """A newer release migrated the catalog. It says which older ones may go on using it."""
        oldest = connection.execute(select(state.c.oldest_schema)).scalar_one()
        if oldest > head:
            raise CatalogUnavailable(
                f"The catalog {self._url} has schema {current}, written by a newer release that needs programs of "
                f"schema {oldest} or later; this one knows {head}. Upgrade this program."
            )

    @contextmanager
    def _first_opening(self) -> Iterator[None]:
        """Turning a new SQLite file to WAL fails at once, without waiting, when two processes try it together."""
        if not self._is_sqlite:
            yield
            return
        path = Path(f"{self._url.database}.lock")
        try:
            file = path.open("ab")
        except PermissionError as error:
            raise CatalogUnavailable(
                f"The catalog {self._url} cannot be opened: {error}. Who only reads it needs to write beside it, too: "
                "be the user that the server runs as, or ask the server."
            ) from error
        except OSError as error:
            raise self._unavailable(error) from error
        with file:
            lock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except (IntegrityError, ProgrammingError, NotSupportedError):
            raise  # a defect of ours, not a state of the database
        except DataError as error:  # PostgreSQL's texts have no NUL, and its numbers of versions end at 2^31
            what = str(error.orig).partition("\n")[0]
            raise InvalidRequest(f"The catalog cannot hold what was given: {what}.") from error
        except DBAPIError as error:
            raise self._named_error(error) from error
        except PoolTimeout as error:
            raise self._unavailable(error) from error

    def _named_error(self, error: DBAPIError) -> RmError:
        cause = error.orig
        is_full = getattr(cause, "sqlstate", None) == _POSTGRESQL_DISK_FULL
        if isinstance(cause, sqlite3.Error):
            is_full = getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        if is_full:
            return StorageFull(f"The disk of the catalog {self._url} is full; nothing was changed.")
        return self._unavailable(cause)

    def _unavailable(self, cause: object) -> CatalogUnavailable:
        message = f"The catalog {self._url} cannot be used now: {cause}"
        return CatalogUnavailable(message, retry_after_s=_RETRY_AFTER_S)


def _parsed(url: str) -> URL:
    """The message has no part of the URL: where it cannot be read, nobody knows which part is the password."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    if parsed is None or parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise ConfigError(
            "The catalog's URL names no database that is known: sqlite:////FOLDER/FILE or "
            "postgresql+psycopg://USER:PASSWORD@HOST/DATABASE is expected. (With ?passfile=FILE, or PGPASSFILE in the "
            "environment, the password can stay out of it.)"
        )
    return parsed


def _server_engine(url: URL) -> Engine:
    """Connections are tried before they are used: the database may have been restarted."""
    patience = dict.fromkeys(("connect_timeout", "keepalives_idle", "keepalives_interval"), SILENCE_S)
    patience["tcp_user_timeout"] = SILENCE_S * 1000  # ms
    own = {name: value for name, value in patience.items() if name not in url.query}
    try:
        return create_engine(url, pool_pre_ping=True, connect_args=own)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"The catalog {url} needs the package {error.name}: install rm-service[postgres], and name the driver "
            "in the URL as postgresql+psycopg://."
        ) from error


def _sqlite_engine(url: URL) -> Engine:
    """WAL, so that readers never wait; synchronous=FULL, so that a commit outlives a power cut."""
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def set_up(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None  # the driver shall not begin transactions of its own
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer takes the lock at once: one that reads first and locks later can be refused without waiting.
        connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('begin', 'DEFERRED')}")

    return engine
