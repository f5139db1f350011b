"""A trainer's process, seen from inside: takes a step when it is told to, and says what the step took."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

CLEAR_PEAK = "5"  # proc(5), clear_refs


class Conductor:
    """Commands come on standard input, a line each; answers leave on what was standard output."""

    def __init__(self) -> None:
        self._answers: TextIO = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # whatever else the trainer prints
        self._resident = self._started_cpu = self._started = 0.0

    def begin_memory(self) -> None:
        """From here on memory counts: what is resident now are the imports."""
        Path("/proc/self/clear_refs").write_text(CLEAR_PEAK)
        self._resident = _status_bytes("VmRSS")

    def wait(self) -> None:
        """Until a step is wanted. Ends the process when nobody can want one any more."""
        if not sys.stdin.readline():
            raise SystemExit
        self._started_cpu, self._started = cpu_s(), time.perf_counter()

    def answer(self, **facts: Any) -> None:
        """The step is done."""
        taken = {
            "cpu_s": cpu_s() - self._started_cpu,
            "wall_s": time.perf_counter() - self._started,
            "peak_bytes": _status_bytes("VmHWM") - self._resident,
        }
        self._answers.write(json.dumps({**taken, **facts}) + "\n")


def cpu_s() -> float:
    """CPU seconds of this process, all threads, and of those it started and has seen end."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def _status_bytes(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))
