"""The middle of the demo: two training runs share one server, and a better reward model takes over meanwhile."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import Child
from screen import Screen
from texts import PROMPT_TEMPLATE, Text

MODEL = "story"
STEPS_BEFORE_SWITCH = 30
"""The first run learns from version 1 for at least so long."""
STEPS_AFTER_SWITCH = 40
"""And goes on for so long with version 2."""
MOST_STEPS = 400
"""Of the first run, were it not ended before."""
STEPS_OF_SECOND_RUN = 35
STOPPED_BY_SIGTERM = 143


@dataclass(frozen=True)
class Places:
    """Where things are."""

    examples: Path
    work: Path

    @property
    def home(self) -> Path:
        return self.work / "home"

    @property
    def logs(self) -> Path:
        return self.work / "logs"

    def run(self, name: str) -> Path:
        return self.work / f"run_{name}"


@dataclass(frozen=True)
class Server:
    """A running server and where it listens."""

    process: Child
    grpc: str
    http: str


def start_server(places: Places) -> Server:
    """Serves what the catalog says shall be loaded, on free ports of the loopback address."""
    process = Child(
        "rm-server serve",
        [
            *("rm-server", "serve", "--home", str(places.home)),
            *("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"),
            # Two cores are shared by the server, the runs and the training of version 2.
            *("--workers", "1", "--set", "engine.threads_per_worker=1"),
        ],
        places.logs / "server.log",
    )
    addresses = dict(field.split("=", 1) for field in process.wait_for_line("ready ", 120).split()[1:])
    return Server(process, addresses["grpc"], addresses["http"])


def start_run(places: Places, name: str, server: Server, selector: str, num_steps: int, seed: int) -> Child:
    """A training run in a process of its own."""
    return Child(
        f"ppo-client train ({name})",
        [
            *("ppo-client", "train", str(places.examples / "demo" / "run.toml"), "--run", f"demo-{name}"),
            *("--policy", str(places.examples / "policy")),
            *("--prompts", str(places.examples / "data" / "story_openings.jsonl.gz")),
            *("--reward-target", server.grpc, "--reward-model", selector, "--output", str(places.run(name))),
            *("--steps", str(num_steps), "--seed", str(seed)),
        ],
        places.logs / f"run_{name}.log",
    )


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The complete lines of a JSON Lines file that may still be growing."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


def play(
    places: Places,
    screen: Screen,
    train_v2: Callable[[], Child],
    register_v2: Callable[[], None],
    compare: Callable[[str], None],
    rescore: Callable[[str], None],
) -> str:
    """The whole middle part; ``compare`` and ``rescore`` get the server's address.

    Returns the server's metrics at its end, as Prometheus reads them.
    """
    children: list[Child] = []
    server = start_server(places)
    children.append(server.process)
    try:
        screen.say(
            f"The server serves {MODEL}@1 as {MODEL}@stable on {server.grpc}; metrics on http://{server.http}/metrics"
        )
        first = start_run(places, "first", server, f"{MODEL}@stable", MOST_STEPS, seed=1)
        children.append(first)
        trainer = train_v2()
        children.append(trainer)
        screen.say("A first PPO run learns from it. Meanwhile version 2 is trained on all training prompts.")

        def is_second_there() -> bool:
            steps = len(rows_of(places.run("first") / "metrics.jsonl"))
            return not trainer.is_running() and steps >= STEPS_BEFORE_SWITCH

        _watch(screen, places, ["first"], [first, server.process], is_second_there, trainer)
        screen.say("Version 2 is trained. It is evaluated, registered and loaded, and the first run goes on.")
        register_v2()
        _admin(screen, places, server, "load_v2", "load", f"{MODEL}@2")
        screen.say(f"{MODEL}@2 is registered and loaded beside {MODEL}@1; both score the same texts.")
        compare(server.grpc)
        _admin(screen, places, server, "promote", "label", MODEL, "stable", "2", "--comment", "trained on all prompts")
        switched_at = len(rows_of(places.run("first") / "metrics.jsonl"))
        screen.say(
            f"{MODEL}@stable is version 2 now (first run: step {switched_at}). A second run starts on {MODEL}@2."
        )
        second = start_run(places, "second", server, f"{MODEL}@2", STEPS_OF_SECOND_RUN, seed=2)
        children.append(second)

        def is_first_done() -> bool:
            return len(rows_of(places.run("first") / "metrics.jsonl")) >= switched_at + STEPS_AFTER_SWITCH

        _watch(screen, places, ["first", "second"], [first, second, server.process], is_first_done)
        first.ask_to_end()
        first.wait(good=(0, STOPPED_BY_SIGTERM))
        _watch(screen, places, ["second"], [second, server.process], lambda: not second.is_running())
        screen.say("Both runs are done. One version scores all that they wrote, from the first step to the last.")
        rescore(server.grpc)
        with urllib.request.urlopen(f"http://{server.http}/metrics", timeout=10) as answer:
            metrics: str = answer.read().decode()
        server.process.ask_to_end()
        server.process.wait()
        return metrics
    finally:
        for child in reversed(children):
            child.kill()


def _watch(
    screen: Screen,
    places: Places,
    names: Sequence[str],
    alive: Iterable[Child],
    is_done: Callable[[], bool],
    trainer: Child | None = None,
) -> None:
    """Shows the state until it is done; raises Failed as soon as one of them has died."""
    alive = list(alive)
    while not is_done():
        for child in alive:
            child.is_running()
        parts = []
        for name in names:
            if rows := rows_of(places.run(name) / "metrics.jsonl"):
                row = rows[-1]
                parts.append(
                    f"{name} run: step {row['step']}, score {row['score_mean']:+.2f} "
                    f"by {MODEL}@{row['reward_version']}, KL {row['kl']:.1f}"
                )
        if trainer is not None:
            parts.append(f"version 2: {trainer.progress() if trainer.is_running() else 'trained'}")
        screen.show(" | ".join(parts))
        time.sleep(0.5)


def _admin(screen: Screen, places: Places, server: Server, log: str, command: str, *arguments: str) -> None:
    screen.run(
        f"rm-server {command}",
        ["rm-server", command, *arguments, "--server", server.grpc],
        places.logs / f"{log}.log",
    )


def score_with(target: str, selector: str, texts: Sequence[Text]) -> list[float]:
    """Scores of texts through the service; all or an error."""
    from ppo_client import RewardClient

    with RewardClient(target, run="demo-report", timeout_s=600) as client:
        return client.score(
            selector,
            prompts=[PROMPT_TEMPLATE.format(prompt=text.prompt) for text in texts],
            completions=[text.completion for text in texts],
        ).values


def latest_policy(run_folder: Path) -> Path:
    """The policy of a run's latest checkpoint."""
    return max((run_folder / "checkpoints").glob("*/policy"), key=lambda policy: policy.parent.name)
