"""What the demo says while it goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from processes import Child


class Screen:
    """One line of the terminal that is written over while things go on; a line now and then where it is a file."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._is_terminal = sys.stdout.isatty()
        self._last_plain = 0.0

    def say(self, text: str) -> None:
        """A line that stays."""
        print(f"\r\x1b[K{self._clock()} {text}" if self._is_terminal else f"{self._clock()} {text}", flush=True)

    def show(self, text: str) -> None:
        """The state of things."""
        now = time.monotonic()
        if self._is_terminal:
            print(f"\r\x1b[K{self._clock()} {text}"[:200], end="", flush=True)
        elif now - self._last_plain > 15:
            self._last_plain = now
            print(f"{self._clock()} {text}", flush=True)

    def run(self, name: str, arguments: Sequence[str], log: Path, threads: int = 2) -> None:
        """Runs a command to its good end, and shows what it says meanwhile. Raises Failed."""
        child = Child(name, arguments, log, threads)
        try:
            while child.is_running():
                self.show(f"{name}: {child.progress()}")
                time.sleep(0.2)
        finally:
            child.kill()

    def _clock(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        return f"[{minutes:2d}:{seconds:02d}]"
