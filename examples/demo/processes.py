"""The demo's child processes: each with its own log, and none left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO


class Failed(Exception):
    """A child process ended with an error; the message has the end of its log."""


class Child:
    """A running command whose output goes to a file."""

    def __init__(self, name: str, arguments: Sequence[str], log: Path, threads: int = 1) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._output: IO[bytes] = log.open("wb")
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }
        self._process = subprocess.Popen(
            [str(Path(sys.executable).parent / arguments[0]), *arguments[1:]],
            stdout=self._output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
        )

    def is_running(self) -> bool:
        """Whether it has not ended yet. Raises Failed when it ended with an error."""
        status = self._process.poll()
        if status is None:
            return True
        if status != 0:
            raise Failed(f"`{self.name}` ended with status {status}. The end of {self.log}:\n{self.tail(30)}")
        return False

    def wait(self, good: Sequence[int] = (0,)) -> None:
        """Waits for its end; raises Failed unless its status is one of the good ones."""
        if self._process.wait() not in good:
            self.is_running()

    def ask_to_end(self) -> None:
        """SIGTERM: finish what is under way, then leave."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Whatever it takes; for the way out after an error."""
        if self._process.poll() is None:
            self.ask_to_end()
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._output.close()

    def tail(self, num_lines: int = 1) -> str:
        """The last lines of its log; a progress bar's last state counts as a line."""
        text = self.log.read_text(errors="replace").replace("\r", "\n")
        return "\n".join([line for line in text.splitlines() if line.strip()][-num_lines:])

    def progress(self) -> str:
        """What it says of its progress, without the bar."""
        return self.tail().rpartition("|")[2].strip() or "begins"

    def wait_for_line(self, prefix: str, timeout_s: float) -> str:
        """The first line that begins so, as soon as it is there."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            for line in self.log.read_text(errors="replace").splitlines():
                if line.startswith(prefix):
                    return line
            if not self.is_running():
                break
            time.sleep(0.1)
        raise Failed(f"`{self.name}` printed no line `{prefix}…` within {timeout_s:.0f} s:\n{self.tail(30)}")
