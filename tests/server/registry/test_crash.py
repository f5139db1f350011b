"""kill -9 at any moment, and several at once: the home is consistent each time, and the next one works."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from rm_server.registry.artifacts import ArtifactStore
from rm_server.registry.catalog import Catalog
from rm_server.registry.home import add_version, missing_artifacts, open_home, sweep_artifacts

from .conftest import MakeFolder

REGISTRAR = Path(__file__).with_name("registrar.py")
POSTGRESQL = os.environ.get("RM_TEST_POSTGRESQL_URL")
FOREVER = 1_000_000


def start(home: Path, actor: str, rounds: int, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, REGISTRAR, home, home.parent / f"scratch-{actor}", actor, str(rounds), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


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


def check_home(home: Path) -> tuple[Catalog, ArtifactStore]:
    """Opens what a killed process left, and finds all of it whole."""
    if (home / "catalog.db").exists():
        with sqlite3.connect(home / "catalog.db") as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    catalog, artifacts = open_home(home)
    check_history(catalog)
    assert missing_artifacts(catalog, artifacts) == ()
    for digest in artifacts.digests():
        artifacts.verify(digest)
    assert list((artifacts.root / ".incoming").iterdir()) == []
    return catalog, artifacts


@pytest.fixture
def moments() -> random.Random:
    """Where to kill: at random, and the same in every run."""
    return random.Random(20)


def kill_at_a_line(modules: str, lines: int, home: Path, moments: random.Random) -> list[str]:
    process = start(home, "ann", FOREVER, "--kill", modules, str(moments.randint(1, lines)))
    output, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors
    return output.splitlines()


def kill_from_outside(home: Path, moments: random.Random) -> list[str]:
    """After some rounds: most of the time that is within a system call, which waits for the disk."""
    process = start(home, "ann", FOREVER)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(moments.randint(1, 6))]
    process.kill()
    return [*lines, *process.communicate(timeout=60)[0].splitlines()]


def test_killed_at_any_moment(tmp_path: Path, rules_folder: MakeFolder, moments: random.Random) -> None:
    home = tmp_path / "home"
    # About three rounds of each.
    in_artifacts = partial(kill_at_a_line, "artifacts,digest,layout,home", 900)
    in_catalog = partial(kill_at_a_line, "catalog,change,queries,database", 400)
    num_unfinished = 0
    open_home(home)
    for kill in (in_artifacts, in_catalog, kill_from_outside) * 5:
        committed = {int(line.split()[0]) for line in kill(home, moments)}
        num_unfinished += len(list((home / "artifacts" / ".incoming").iterdir()))
        catalog, artifacts = check_home(home)
        assert committed <= set(catalog.snapshot().versions_of("m"))
        num_unfinished += len(sweep_artifacts(catalog, artifacts))
        record, created = add_version(
            catalog, artifacts, "m", rules_folder(f"after-{len(catalog.history())}"), actor="test"
        )
        assert created
        assert record.version == max(catalog.snapshot().versions_of("m"))
        catalog.set_label("m", "stable", record.version, "test")
        catalog.close()
    # Otherwise the kills came when nothing was under way, and this test shows nothing.
    assert num_unfinished >= 3


def test_killed_while_a_home_is_made(tmp_path: Path, rules_folder: MakeFolder, moments: random.Random) -> None:
    for number in range(5):
        home = tmp_path / f"home-{number}"
        process = start(home, "ann", 1, "--kill", "home,artifacts,database,env,schema_*", str(moments.randint(5, 120)))
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        catalog, artifacts = check_home(home)
        add_version(catalog, artifacts, "m", rules_folder(str(number)), actor="test")
        catalog.close()


@pytest.fixture(params=["sqlite", "postgresql"] if POSTGRESQL else ["sqlite"])
def catalog_options(request: pytest.FixtureRequest) -> Iterator[tuple[str, ...]]:
    """What a process needs to know of the catalog: nothing, or the shared database."""
    if request.param == "sqlite":
        yield ()
        return
    engine = create_engine(str(POSTGRESQL))
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    yield ("--catalog", str(POSTGRESQL))


def test_several_processes_at_once_lose_nothing(tmp_path: Path, catalog_options: tuple[str, ...]) -> None:
    home, rounds, actors = tmp_path / "home", 15, ("ann", "bob", "cat", "dan")
    processes = [start(home, actor, rounds, *catalog_options) for actor in actors]
    catalog, artifacts = open_home(home, *catalog_options[1:])
    seen = [catalog.snapshot()]
    while any(process.poll() is None for process in processes):
        seen.append(catalog.snapshot())
        assert all((model, version) in seen[-1].versions for (model, _), version in seen[-1].labels.items())
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [errors for _, errors in outputs] == [""] * len(actors)
    assert [process.returncode for process in processes] == [0] * len(actors)

    assert all(before.revision <= after.revision for before, after in pairwise(seen))
    check_history(catalog)
    num_versions = rounds * len(actors)
    assert catalog.revision() == 1 + 2 * num_versions
    assert catalog.snapshot().versions_of("m") == tuple(range(1, num_versions + 1))
    assert catalog.snapshot().versions_of("shared") == (1,)
    history = catalog.history("m", limit=1000)
    assert {actor: sum(change.actor == actor for change in history) for actor in actors} == dict.fromkeys(
        actors, 2 * rounds
    )
    # What each process was told is what the history says.
    told = {tuple(map(int, line.split())) for output, _ in outputs for line in output.splitlines()}
    assert told == {(c.version, c.previous_version) for c in history if c.action == "set_label"}
    for digest in artifacts.digests():
        artifacts.verify(digest)
    catalog.close()
