"""Opening, migrating and losing the database."""

from __future__ import annotations

import errno
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from postgresql import PASSWORD, PostgreSQL, new_database
from sqlalchemy import insert, select, text

from rm_server.config import ConfigError
from rm_server.errors import CatalogUnavailable, InvalidRequest, StorageFull
from rm_server.registry import database as database_module
from rm_server.registry.database import Database
from rm_server.registry.tables import metadata, models


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/catalog.db"


def test_migrations_make_the_tables_that_the_code_uses(url: str) -> None:
    with Database(url).reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def test_a_commit_outlives_a_power_cut_and_readers_never_wait(url: str) -> None:
    with Database(url).reading() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}


def test_another_user_is_told_what_it_lacks(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Database(url).close()

    def refused(path: Path, mode: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", refused)  # the tests' user may be root, to whom no file is closed
    with pytest.raises(CatalogUnavailable, match="be the user that the server runs as, or ask the server"):
        Database(url)


def test_on_postgresql_the_migrations_make_them_too_and_are_made_once(postgresql_url: str) -> None:
    failures: list[Exception] = []

    def open_it() -> None:
        try:
            Database(postgresql_url).close()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    database = Database(postgresql_url)
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    database.close()


def test_a_database_that_was_restarted_is_used_again_and_one_that_is_away_is_said(postgresql: PostgreSQL) -> None:
    with new_database(postgresql.url) as url:
        database = Database(url)
        postgresql.restart()
        with database.writing() as connection:
            connection.execute(insert(models).values(name="m", next_version=1))
        postgresql.stop()
        try:
            with pytest.raises(CatalogUnavailable) as caught, database.reading():
                pass
            assert caught.value.retry_after_s == 1.0
            assert PASSWORD not in str(caught.value)
            assert "rm:***@127.0.0.1" in str(caught.value)
        finally:
            postgresql.start()
        with database.reading() as connection:
            assert connection.scalar(select(models.c.name)) == "m"
        database.close()


@pytest.mark.parametrize(("name", "next_version"), [("m\0", 1), ("m", 4_000_000_000)])
def test_what_postgresql_cannot_hold_is_the_caller_s_mistake(postgresql_url: str, name: str, next_version: int) -> None:
    database = Database(postgresql_url)
    with pytest.raises(InvalidRequest, match=r"^The catalog cannot hold what was given: .*(NUL|out of range)"):  # noqa: SIM117
        with database.writing() as connection:
            connection.execute(insert(models).values(name=name, next_version=next_version))
    database.close()


def test_a_driver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"needs the package psycopg: install rm-service\[postgres\]") as caught:
        Database("postgresql+psycopg://rm:secret@127.0.0.1/rm")
    assert "secret" not in str(caught.value)


def test_an_exception_leaves_nothing(url: str) -> None:
    database = Database(url)
    with pytest.raises(KeyError):  # noqa: SIM117, PT012
        with database.writing() as connection:
            connection.execute(insert(models).values(name="m", next_version=1))
            raise KeyError
    with database.reading() as connection:
        assert connection.execute(models.select()).all() == []


def test_a_reader_sees_one_state_while_others_write(url: str) -> None:
    database = Database(url)
    with database.reading() as reader:
        before = reader.execute(models.select()).all()
        with Database(url).writing() as writer:
            writer.execute(insert(models).values(name="m", next_version=1))
        assert reader.execute(models.select()).all() == before == []
    with database.reading() as reader:
        assert len(reader.execute(models.select()).all()) == 1


def test_a_failed_migration_changes_nothing(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "migrations"
    (broken / "versions").mkdir(parents=True)
    (broken / "env.py").write_text((database_module.MIGRATIONS / "env.py").read_text())
    first = next((database_module.MIGRATIONS / "versions").glob("*0001*.py")).read_text()
    (broken / "versions" / "first.py").write_text(first + "\n    raise RuntimeError('half way')\n")
    with monkeypatch.context() as patch:
        patch.setattr(database_module, "MIGRATIONS", broken)
        with pytest.raises(RuntimeError, match="half way"):
            Database(url)
    with sqlite3.connect(tmp_path / "catalog.db") as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []
    Database(url)


def as_if_migrated_by_a_newer_release(url: str, oldest_schema: str) -> None:
    with Database(url).writing() as connection:
        connection.execute(text("ALTER TABLE models ADD COLUMN extra TEXT"))
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        connection.execute(text("UPDATE catalog_state SET oldest_schema = :oldest"), {"oldest": oldest_schema})


def test_a_newer_catalog_that_allows_this_release_is_used_as_it_is(url: str) -> None:
    as_if_migrated_by_a_newer_release(url, "0001")
    with Database(url).writing() as connection:
        connection.execute(insert(models).values(name="m", next_version=1))
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "9999"


def test_a_catalog_that_is_too_new_is_refused(url: str) -> None:
    as_if_migrated_by_a_newer_release(url, "9000")
    with pytest.raises(CatalogUnavailable, match=r"schema 9999, written by a newer release.*Upgrade this program"):
        Database(url)


def test_a_writer_that_waits_too_long_is_told_to_come_back(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = Database(url)
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_S", 0.01)
    with holder.writing(), pytest.raises(CatalogUnavailable, match="database is locked") as caught:
        Database(url)
    assert caught.value.retry_after_s == 1.0


def test_a_writer_of_postgresql_waits_no_longer(postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    holder, other = Database(postgresql_url), Database(postgresql_url)
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_S", 0.01)
    with holder.writing(), pytest.raises(CatalogUnavailable, match="lock timeout") as caught, other.writing():
        pass
    assert caught.value.retry_after_s == 1.0
    with other.writing():  # and nothing of that is left
        pass


def test_who_was_stopped_in_the_middle_of_writing_holds_nobody_up_for_ever(postgresql_url: str) -> None:
    holder, other = Database(postgresql_url), Database(postgresql_url)
    ended = "idle-in-transaction|server closed the connection"  # the reason is lost where the end of it comes first
    with pytest.raises(CatalogUnavailable, match=ended), holder.writing() as stopped:  # noqa: PT012
        assert stopped.scalar(text("SHOW idle_in_transaction_session_timeout")) == "1min"
        stopped.execute(text("SET LOCAL idle_in_transaction_session_timeout = '1ms'"))  # so that the test need not wait
        with other.writing() as connection:
            connection.execute(insert(models).values(name="m", next_version=1))
        stopped.execute(select(models))
    with holder.writing() as connection:
        assert connection.execute(select(models.c.name)).scalars().all() == ["m"]


def test_a_postgresql_that_says_nothing_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "SILENCE_S", 2)  # psycopg knows no less
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(CatalogUnavailable, match="timeout expired"):
            Database(f"postgresql+psycopg://rm:secret@{address}/rm")


def test_a_file_that_is_no_database_is_said(url: str, tmp_path: Path) -> None:
    (tmp_path / "catalog.db").write_text("not a database at all, however long one makes the text")
    with pytest.raises(CatalogUnavailable, match="file is not a database"):
        Database(url)


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(CatalogUnavailable, match="No such file or directory"):
        Database(f"sqlite:///{tmp_path}/nowhere/catalog.db")


def test_a_full_disk_is_a_full_disk(url: str) -> None:
    database = Database(url)
    with database.reading() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    large = insert(models).values(name="m" * 100_000, next_version=1)
    with pytest.raises(StorageFull, match=r"disk of the catalog .* is full"):  # noqa: SIM117, PT012
        with database.writing() as connection:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
            connection.execute(large)


def test_a_new_file_is_set_up_by_one_process_at_a_time(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Switching to WAL, which the first opening does, fails at once when another process is at it."""
    existed = []
    monkeypatch.setattr(
        database_module.fcntl, "flock", lambda file, how: existed.append((tmp_path / "catalog.db").exists())
    )
    Database(url)
    assert existed == [False]


def test_threads_may_open_different_catalogs_at_once(tmp_path: Path) -> None:
    failures: list[Exception] = []

    def open_it(number: int) -> None:
        try:
            Database(f"sqlite:///{tmp_path}/{number}.db")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=open_it, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


def test_processes_and_threads_that_open_at_once_agree(url: str) -> None:
    program = f"from rm_server.registry.database import Database; Database({url!r})"
    processes = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) for _ in range(4)]
    failures: list[Exception] = []

    def open_it() -> None:
        try:
            Database(url)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert [process.communicate(timeout=60)[1] for process in processes] == [b""] * 4
    with Database(url).reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM catalog_state")).scalar() == 1
