"""kill -9 at 50 random moments of registering, moving a label and migrating, on each kind of database.

After each: the catalog is whole, every version it names has whole files, nothing is half registered, what was committed
is there, and a server that starts on it serves.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from postgresql import postgresql, postgresql_url  # noqa: F401, fixtures
from rm_api.v1 import models_pb2
from running_server import running

from bench.storms.killings import kill_migrations, kill_registrations
from rm_server.registry.home import Home, open_home

NUM_ROUNDS, NUM_MIGRATIONS = 35, 15  # 50 kills


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
    kills = []
    for kill in kill_registrations(home, moments, NUM_ROUNDS, check_serves):
        assert kill.problem == "", f"kill {len(kills)}, {kill.during}:\n{kill.problem}"
        kills.append(kill)
    assert len(kills) == NUM_ROUNDS
    # Otherwise the kills came when nothing was under way, and this test shows nothing.
    assert any(kill.is_half_copied for kill in kills), kills
    assert any(kill.is_unnamed or kill.is_unlabelled for kill in kills), kills


def test_killed_while_an_older_catalog_is_migrated(home: Home, moments: random.Random) -> None:
    kills = []
    for kill in kill_migrations(home, moments, NUM_MIGRATIONS, check_serves):
        assert kill.problem == "", f"kill {len(kills)}:\n{kill.problem}"
        kills.append(kill)
    assert len(kills) == NUM_MIGRATIONS
    # Otherwise every kill came when all was done already.
    assert any(kill.is_unmigrated for kill in kills)
