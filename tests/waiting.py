"""Waiting for what other threads and processes do."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], what: str = "it holds", seen: Callable[[], str] = str) -> None:
    """Returns once it holds. A minute is for ever: the limit is for broken code, and says ``what`` never came."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f"it never came to this: {what}. {seen()}"
        time.sleep(0.01)
