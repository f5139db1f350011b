"""kill -9 at any moment, and several at once: the home is consistent each time, and the next one works."""

from __future__ import annotations

import random
import signal
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from postgresql import has_postgresql

from bench.storms.killed_homes import (
    IN_ARTIFACTS,
    IN_CATALOG,
    IN_MIGRATION,
    check_history,
    check_home,
    kill_at_a_line,
    kill_from_outside,
    start,
)
from rm_server.registry.home import Home, add_version, open_home, sweep_artifacts

from .conftest import MakeFolder


@pytest.fixture
def moments() -> random.Random:
    """Where to kill: at random, and the same in every run."""
    return random.Random(20)


def test_killed_at_any_moment(tmp_path: Path, rules_folder: MakeFolder, moments: random.Random) -> None:
    home = Home(tmp_path / "home")
    # About three rounds of each.
    in_artifacts = partial(kill_at_a_line, IN_ARTIFACTS, 900)
    in_catalog = partial(kill_at_a_line, IN_CATALOG, 400)
    num_unfinished = 0
    open_home(home)
    for kill in (in_artifacts, in_catalog, kill_from_outside) * 5:
        committed = kill(home, moments)
        num_unfinished += len(list((home.path / "artifacts" / ".incoming").iterdir()))
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
        home = Home(tmp_path / f"home-{number}")
        process = start(home, "ann", 1, "--kill", f"home,artifacts,{IN_MIGRATION}", str(moments.randint(5, 120)))
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        catalog, artifacts = check_home(home)
        add_version(catalog, artifacts, "m", rules_folder(str(number)), actor="test")
        catalog.close()


@pytest.fixture(params=["sqlite", "postgresql"] if has_postgresql() else ["sqlite"])
def catalog_url(request: pytest.FixtureRequest) -> str:
    """Of the database that the processes share; empty: a file in their home."""
    return str(request.getfixturevalue("postgresql_url")) if request.param == "postgresql" else ""


def test_several_processes_at_once_lose_nothing(tmp_path: Path, catalog_url: str) -> None:
    home, rounds, actors = Home(tmp_path / "home", catalog_url), 15, ("ann", "bob", "cat", "dan")
    processes = [start(home, actor, rounds) for actor in actors]
    catalog, artifacts = open_home(home)
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
