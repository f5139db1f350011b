"""A trainer's process, seen from outside."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.ppo.toy import Job

ROOT = Path(__file__).parent.parent.parent


class Arm:
    """Takes steps one by one; between them it uses no CPU. To be used as a context."""

    def __init__(self, name: str, python: Path, module: str, warm_up: Job, job: Job) -> None:
        self.name = name
        self._log = (Path(job.folder) / f"{name}.log").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [str(python), "-m", module, warm_up.to_json(), job.to_json()],
            cwd=ROOT,
            # One thread: more would wait for each other on a model this small.
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def step(self) -> dict[str, Any]:
        """What a step took: cpu_s, wall_s, peak_bytes, score. Raises RuntimeError if the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write("step\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its log says more
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"{self.name} has ended:\n{self._log.read()[-3000:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def __enter__(self) -> Arm:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate()
        self._log.close()
