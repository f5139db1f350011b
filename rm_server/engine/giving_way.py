"""Work that may take long and that nobody waits for: it runs when those who answer callers leave it time."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import get_native_id
from typing import TypeVar

T = TypeVar("T")

NICENESS = 10
"""A ninth of the time that a busy computing thread gets, all of it where there is none.

At half load a batch that takes a third longer doubles the wait of those behind it, so a third was too much.
"""

LOWEST_PRIORITY = 19


def give_way() -> None:
    """This thread, and those that its forward passes start, run when others leave them time from now on.

    Nothing makes that undone. Linux alone has priorities for threads; elsewhere it is an equal among the others.
    """
    if sys.platform == "linux":
        present = os.getpriority(os.PRIO_PROCESS, get_native_id())
        os.setpriority(os.PRIO_PROCESS, get_native_id(), min(present + NICENESS, LOWEST_PRIORITY))


async def giving_way(function: Callable[[], T]) -> T:
    """What the function returns or raises, called in a thread of its own that gives way."""
    threads = ThreadPoolExecutor(1, thread_name_prefix="giving-way", initializer=give_way)
    try:
        return await asyncio.get_running_loop().run_in_executor(threads, function)
    finally:
        threads.shutdown(wait=False)
