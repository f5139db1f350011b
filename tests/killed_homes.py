"""Starts the registrar, kills it, and looks whether what it left is whole: for the tests of crashes."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

from rm_server.registry.artifacts import ArtifactStore
from rm_server.registry.catalog import Catalog
from rm_server.registry.home import Home, missing_artifacts, open_home

REGISTRAR = Path(__file__).with_name("registrar.py")
FOREVER = 1_000_000
# Where a registration is on the way, a label, and a new or older database.
IN_ARTIFACTS = "artifacts,copying,digest,layout,home"
IN_CATALOG = "catalog,change,queries,database"
IN_MIGRATION = "database,env,schema_*"


def start(home: Home, actor: str, rounds: int, *options: str) -> subprocess.Popen[str]:
    """A registrar on its way."""
    command = [sys.executable, REGISTRAR, home.path, home.path.parent / f"scratch-{actor}", actor, str(rounds)]
    command += ["--catalog", home.catalog, "--artifacts", home.artifacts, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def count_lines(modules: str, home: Home, rounds: int) -> int:
    """How many lines of the modules a whole run has."""
    output, errors = start(home, "counter", rounds, "--count", modules).communicate(timeout=60)
    assert errors == ""
    return int(output.splitlines()[-1])


def kill_at_a_line(modules: str, num_lines: int, home: Home, moments: random.Random, rounds: int = FOREVER) -> set[int]:
    """Before any of the first ``num_lines`` lines; returns the versions that were committed until then."""
    process = start(home, "ann", rounds, "--kill", modules, str(moments.randint(1, num_lines)))
    output, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors
    return {int(line.split()[0]) for line in output.splitlines()}


def kill_from_outside(home: Home, moments: random.Random) -> set[int]:
    """After some rounds: most of the time that is within a system call, which waits for the disk."""
    process = start(home, "ann", FOREVER)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(moments.randint(1, 6))]
    process.kill()
    lines += process.communicate(timeout=60)[0].splitlines()
    return {int(line.split()[0]) for line in lines}


def check_history(catalog: Catalog) -> None:
    """Every revision has its line, and every label move begins where the one before ended."""
    changes = catalog.history(limit=10_000)[::-1]
    assert [change.revision for change in changes] == list(range(1, catalog.revision() + 1))
    named = 0
    for change in changes:
        if change.action == "set_label":
            assert change.previous_version == named
            named = change.version
    assert catalog.snapshot().labels.get(("m", "stable"), 0) == named


def check_home(home: Home) -> tuple[Catalog, ArtifactStore]:
    """Opens what a killed process left, and finds all of it whole."""
    file = home.path / "catalog.db"
    if file.exists():
        with sqlite3.connect(file) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    catalog, artifacts = open_home(home)
    check_history(catalog)
    assert missing_artifacts(catalog, artifacts) == ()
    for digest in artifacts.digests():
        artifacts.verify(digest)
    assert list((artifacts.root / ".incoming").iterdir()) == []
    return catalog, artifacts
