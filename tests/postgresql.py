"""A PostgreSQL of the tests' own: on loopback, in a temporary folder, with a password; skipped where none is installed.

    from postgresql import postgresql, postgresql_url  # noqa: F401, the fixtures

`postgresql_url` is a fresh, empty database for each test; `postgresql` is the server, to stop and start. With
RM_TEST_POSTGRESQL_URL (a database of a server that may create others, with its driver) the databases are made there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from sqlalchemy import make_url

from bench.storms import postgresql as own
from bench.storms.postgresql import PASSWORD, NotInstalled, PostgreSQL, find_binaries, new_database

__all__ = [
    "PASSWORD",
    "PostgreSQL",
    "has_postgresql",
    "new_database",
    "postgresql",
    "postgresql_url",
    "running_postgresql",
]

SHARED = os.environ.get("RM_TEST_POSTGRESQL_URL")


def has_postgresql() -> bool:
    """Whether tests can have one here; for parameters, which are chosen before any fixture runs."""
    return SHARED is not None or find_binaries() is not None


@contextmanager
def running_postgresql() -> Iterator[PostgreSQL]:
    """A server for the time of a block; the test is skipped where PostgreSQL is not installed."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(own.running_postgresql())
        except NotInstalled as error:
            pytest.skip(f"{error}, or set RM_TEST_POSTGRESQL_URL")
        yield server


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A server for the whole session. Who stops it starts it again."""
    with running_postgresql() as server:
        yield server


@pytest.fixture
def postgresql_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh, empty database."""
    server_url = make_url(SHARED) if SHARED else request.getfixturevalue("postgresql").url
    with new_database(server_url) as url:
        yield url
