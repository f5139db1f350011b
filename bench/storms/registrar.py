"""A program that registers versions and moves a label; storms and tests run several at once, and kill it.

    python -m bench.storms.registrar HOME SCRATCH ACTOR ROUNDS [--catalog URL] [--artifacts URL]
                                     [--kill MODULES LINES | --count MODULES]

Prints `version previous` once a round is committed. With --kill it sends itself SIGKILL once that many lines of these
modules of the registry have run: any place between two lines can be hit, and hit again. With --count it says in the end
how many lines those were.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from rm_server.registry import home as home_module
from rm_server.registry.manifest import Manifest, write_manifest

REGISTRY = Path(home_module.__file__).parent
RULES = {"rules": [{"type": "length", "unit": "words", "max": 3}]}
"""Of every version: 1.0 for up to three words, else 0.0."""


class Lines:
    """Counts the lines of some modules as they run, and kills the process when ``last`` have run; 0: never."""

    def __init__(self, modules: str, last: int) -> None:
        self._files = {str(path) for module in modules.split(",") for path in REGISTRY.rglob(f"{module}.py")}
        self._last = last
        self.num_run = 0

    def trace(self, frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        if frame.f_code.co_filename not in self._files:
            return None
        if event == "line":
            self.num_run += 1
            if self.num_run == self._last:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.trace


def make_folder(scratch: Path, text: str) -> Path:
    scratch.mkdir(exist_ok=True)
    (scratch / "rules.json").write_text(json.dumps(RULES))
    (scratch / "vocab.txt").write_text(text * 1000)
    write_manifest(scratch, Manifest(kind="rules", transform="rule"))
    return scratch


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("actor")
    parser.add_argument("rounds", type=int)
    parser.add_argument("--catalog", default="")
    parser.add_argument("--artifacts", default="")
    parser.add_argument("--kill", nargs=2)
    parser.add_argument("--count")
    given = parser.parse_args()
    lines = Lines(given.kill[0], int(given.kill[1])) if given.kill else Lines(given.count or "", 0)
    if given.kill or given.count:
        sys.settrace(lines.trace)
    catalog, artifacts = home_module.open_home(home_module.Home(given.home, given.catalog, given.artifacts))
    if given.rounds:
        same = make_folder(given.scratch, "the same for all")
        home_module.add_version(catalog, artifacts, "shared", same, actor=given.actor)
    for number in range(given.rounds):
        folder = make_folder(given.scratch, f"{given.actor} {number} {os.getpid()}")
        record, created = home_module.add_version(catalog, artifacts, "m", folder, actor=given.actor)
        assert created
        previous = catalog.set_label("m", "stable", record.version, given.actor)
        print(record.version, previous or 0, flush=True)
    if given.count:
        sys.settrace(None)
        print(lines.num_run)


if __name__ == "__main__":
    main()
