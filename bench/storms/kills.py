"""Whether a home is consistent, and served, after kill -9 at random moments of register, label move and migrate."""

from __future__ import annotations

import random
import signal
import tempfile
from collections import Counter
from pathlib import Path

from bench.measurement import Bench
from bench.storms.killings import Kill, kill_migrations, kill_registrations
from bench.storms.server_process import ServerProcess
from ppo_client import RewardClient
from rm_server.registry.home import Home, open_home


def run(bench: Bench) -> None:
    """Other moments in each run; the seed is in the rows, and so is all that is known of what was not consistent."""
    num_registrations, num_migrations = (8, 4) if bench.quick else (35, 15)
    seed = random.randrange(1 << 32)
    bench.row(what="moments", seed=seed)
    moments = random.Random(seed)
    kills: list[Kill] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        registered, migrated = Home(Path(folder) / "registered"), Home(Path(folder) / "migrated")
        kills += kill_registrations(registered, moments, num_registrations, check_serves)
        kills += kill_migrations(migrated, moments, num_migrations, check_serves)
    for during, num in Counter(kill.during for kill in kills).items():
        some = [kill for kill in kills if kill.during == during]
        bench.row(
            what=during,
            kills=num,
            half_copied=sum(kill.is_half_copied for kill in some),
            without_name=sum(kill.is_unnamed for kill in some),
            without_label=sum(kill.is_unlabelled for kill in some),
            before_migration=sum(kill.is_unmigrated for kill in some),
        )
    for number, kill in enumerate(kills):
        if kill.problem:
            bench.row(what="problem", text=f"kill {number}, {kill.during}: {kill.problem}")
    bench.figure("kills", len(kills))
    bench.figure("kills_inconsistent", sum(bool(kill.problem) for kill in kills))


def check_serves(home: Home) -> None:
    """Raises unless a server starts on the home and, if it came to a label, scores by it."""
    catalog, _ = open_home(home)
    is_labelled = ("m", "stable") in catalog.snapshot().labels
    catalog.close()
    server = ServerProcess(home)
    try:
        server.start()
        with RewardClient(server.address, timeout_s=60.0) as client:
            if not is_labelled:
                client.list_models()
                return
            scores = client.score("m@stable", prompts=["Hi"] * 2, completions=["one two three", "and one word more"])
            if list(scores.values) != [1.0, 0.0]:
                raise RuntimeError(f"m@stable scores {scores.values} instead of 1 and 0")
    finally:
        server.kill(signal.SIGTERM)
