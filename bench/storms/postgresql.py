"""A PostgreSQL of its own: on loopback, in a temporary folder, with a password."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, NullPool, create_engine, text

PASSWORD = "not-to-be-printed"
_SETTINGS = "-c fsync=off -c max_connections=100 -c unix_socket_directories="
_INITDB = ("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync")
# Not subprocess's own ``user``: it forks, and what gRPC does in a fork while it is called ended a child now and then.
_AS = (
    "import os, sys; u, g, *c = sys.argv[1:]; os.setgroups([]); os.setgid(int(g)); os.setuid(int(u)); os.execv(c[0], c)"
)
_numbers = itertools.count(1)


class NotInstalled(Exception):
    """A program that is needed is not there; the message says what to install."""


class PostgreSQL:
    """One server with its data in ``folder``. It keeps data and port when it is stopped and started again."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self._data = folder / "data"
        self._log = folder / "log"
        self._binaries = binaries
        # PostgreSQL refuses to run as root, so there it runs as somebody else, who then owns the folder.
        self._user = _other_user() if os.geteuid() == 0 else None
        if self._user:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)
        password = folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        self._call("initdb", "--pgdata", self._data, "--username=rm", f"--pwfile={password}", *_INITDB)
        self.port = _free_port()

    def start(self) -> None:
        """Returns when it takes connections."""
        options = f"{_SETTINGS} -c listen_addresses=127.0.0.1 -p {self.port}"
        self._call("pg_ctl", "start", "--wait", "--pgdata", self._data, "--log", self._log, "--options", options)

    def stop(self, mode: str = "immediate") -> None:
        """``immediate``: as a crash, which the next start recovers from. ``fast``: disconnects everybody, then ends."""
        self._call("pg_ctl", "stop", "--wait", "--pgdata", self._data, "--mode", mode)

    def restart(self, mode: str = "fast") -> None:
        """Stops and starts it; every connection is lost."""
        self.stop(mode)
        self.start()

    @property
    def url(self) -> URL:
        """The server's own database, from which others are made."""
        return URL.create("postgresql+psycopg", "rm", PASSWORD, "127.0.0.1", self.port, "postgres")

    def is_running(self) -> bool:
        """Whether its main process lives."""
        return (self._data / "postmaster.pid").exists()

    def _call(self, program: str, *arguments: object) -> None:
        command = [str(part) for part in (self._binaries / program, *arguments)]
        if self._user:
            command = [sys.executable, "-c", _AS, str(self._user.pw_uid), str(self._user.pw_gid), *command]
        # The server inherits what it is started with: pipes would stay open as long as it runs.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=False,
                cwd=self._data.parent,
            )
            output.seek(0)
            log = self._log.read_text() if self._log.exists() else ""
            assert done.returncode == 0, f"{command}: {done.returncode} {output.read()}\n{log}"


def find_binaries() -> Path | None:
    """The folder of initdb, pg_ctl and postgres; Debian keeps it out of PATH."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name, reverse=True)
    return next((f for f in folders if all((f / name).exists() for name in ("initdb", "pg_ctl", "postgres"))), None)


@contextmanager
def running_postgresql() -> Iterator[PostgreSQL]:
    """A server for the time of a block; raises NotInstalled where PostgreSQL is not."""
    binaries = find_binaries()
    if binaries is None:
        raise NotInstalled("PostgreSQL is not installed: apt-get install postgresql")
    # Straight under the system's folder: who runs PostgreSQL may not enter those that only their owner may.
    with tempfile.TemporaryDirectory(prefix="rm-postgresql-") as folder:
        server = PostgreSQL(Path(folder), binaries)
        server.start()
        try:
            yield server
        finally:
            if server.is_running():
                server.stop()


@contextmanager
def new_database(server_url: URL) -> Iterator[str]:
    """An empty database of its own beside the one that is named, as a URL of SQLAlchemy with its password."""
    name = f"rm_test_{os.getpid()}_{next(_numbers)}"
    # No pool: the caller may restart the server meanwhile.
    engine = create_engine(server_url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield server_url.set(database=name).render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


def _other_user() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise NotInstalled("PostgreSQL does not run as root, and there is neither a user `postgres` nor `nobody`")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
