"""Starts the registrar, kills it, and looks whether what it left is whole: for storms and the tests of crashes."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from rm_server.registry.artifacts import ArtifactStore
from rm_server.registry.catalog import Catalog
from rm_server.registry.home import Home, missing_artifacts, open_home

ROOT = Path(__file__).parents[2]
FOREVER = 1_000_000
# Where a registration is on the way, a label, and a new or older database.
IN_ARTIFACTS = "artifacts,copying,digest,layout,home"
IN_CATALOG = "catalog,change,queries,database"
IN_MIGRATION = "database,env,schema_*"


class Inconsistency(AssertionError):
    """What a killed process left is not whole."""


def start(home: Home, actor: str, rounds: int, *options: str) -> subprocess.Popen[str]:
    """A registrar on its way."""
    command = [sys.executable, "-m", "bench.storms.registrar"]
    command += [str(home.path), str(home.path.parent / f"scratch-{actor}"), actor, str(rounds)]
    command += ["--catalog", home.catalog, "--artifacts", home.artifacts, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def count_lines(modules: str, home: Home, rounds: int) -> int:
    """How many lines of the modules a whole run has."""
    output, errors = start(home, "counter", rounds, "--count", modules).communicate(timeout=60)
    check(errors == "", f"The registrar says: {errors}")
    return int(output.splitlines()[-1])


def kill_at_a_line(modules: str, num_lines: int, home: Home, moments: random.Random, rounds: int = FOREVER) -> set[int]:
    """Before any of the first ``num_lines`` lines; returns the versions that were committed until then."""
    line = moments.randint(1, num_lines)
    process = start(home, "ann", rounds, "--kill", modules, str(line))
    output, errors = process.communicate(timeout=60)
    check(process.returncode == -signal.SIGKILL, f"{modules}, line {line}: ended by itself: {errors}")
    return {int(line.split()[0]) for line in output.splitlines()}


def kill_from_outside(home: Home, moments: random.Random) -> set[int]:
    """After some rounds: most of the time that is within a system call, which waits for the disk."""
    process = start(home, "ann", FOREVER)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(moments.randint(1, 6))]
    process.kill()
    output, errors = process.communicate(timeout=60)
    check(process.returncode == -signal.SIGKILL and all(lines), f"after {lines}: ended by itself: {errors}")
    lines += output.splitlines()
    return {int(line.split()[0]) for line in lines}


def check_history(catalog: Catalog) -> None:
    """Every revision has its line, and every label move begins where the one before ended."""
    changes = catalog.history(limit=10_000)[::-1]
    revisions = [change.revision for change in changes]
    check(revisions == list(range(1, catalog.revision() + 1)), f"revisions to {catalog.revision()}: {revisions}")
    named = 0
    for change in changes:
        if change.action == "set_label":
            check(change.previous_version == named, f"the label named {named} before {change}")
            named = change.version
    labelled = catalog.snapshot().labels.get(("m", "stable"), 0)
    check(labelled == named, f"stable names {labelled}, its history {named}")


def check_home(home: Home) -> tuple[Catalog, ArtifactStore]:
    """Opens what a killed process left, and finds all of it whole, or raises Inconsistency."""
    file = home.path / "catalog.db"
    if file.exists():
        # `with` alone ends a transaction and leaves the file open.
        with closing(sqlite3.connect(file)) as connection:
            found = connection.execute("PRAGMA integrity_check").fetchall()
            check(found == [("ok",)], f"integrity_check: {found}")
            found = connection.execute("PRAGMA foreign_key_check").fetchall()
            check(found == [], f"foreign_key_check: {found}")
    catalog, artifacts = open_home(home)
    check_history(catalog)
    missing = missing_artifacts(catalog, artifacts)
    check(missing == (), f"registered without files: {missing}")
    for digest in artifacts.digests():
        artifacts.verify(digest)
    left = list((artifacts.root / ".incoming").iterdir())
    check(left == [], f"half copied, and not cleaned away: {left}")
    return catalog, artifacts


def check(is_so: bool, otherwise: str) -> None:
    """Raises Inconsistency with the message where it is not so."""
    if not is_so:
        raise Inconsistency(otherwise)
