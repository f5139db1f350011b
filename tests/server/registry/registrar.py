"""A program that registers versions and moves a label; the tests run several at once, and kill it.

    registrar.py HOME SCRATCH ACTOR ROUNDS [--catalog URL] [--kill MODULES LINES]

Prints `version previous` once a round is committed. With --kill it sends itself SIGKILL once that many lines of these
modules of the registry have run: any place between two lines can be hit, and hit again.
"""

from __future__ import annotations

import argparse
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


def kill_after(modules: list[str], num_lines: int) -> Callable[..., Any]:
    files = {str(path) for module in modules for path in REGISTRY.rglob(f"{module}.py")}

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        nonlocal num_lines
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            num_lines -= 1
            if num_lines == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def make_folder(scratch: Path, text: str) -> Path:
    scratch.mkdir(exist_ok=True)
    (scratch / "rules.json").write_text(text)
    (scratch / "vocab.txt").write_text(text * 1000)
    write_manifest(scratch, Manifest(kind="rules", transform="rule"))
    return scratch


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("actor")
    parser.add_argument("rounds", type=int)
    parser.add_argument("--catalog")
    parser.add_argument("--kill", nargs=2)
    given = parser.parse_args()
    if given.kill:
        sys.settrace(kill_after(given.kill[0].split(","), int(given.kill[1])))
    catalog, artifacts = home_module.open_home(given.home, given.catalog)
    same = make_folder(given.scratch, "the same for all")
    home_module.add_version(catalog, artifacts, "shared", same, actor=given.actor)
    for number in range(given.rounds):
        folder = make_folder(given.scratch, f"{given.actor} {number} {os.getpid()}")
        record, created = home_module.add_version(catalog, artifacts, "m", folder, actor=given.actor)
        assert created
        previous = catalog.set_label("m", "stable", record.version, given.actor)
        print(record.version, previous or 0, flush=True)


if __name__ == "__main__":
    main()
