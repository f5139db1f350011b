"""What gives way runs in a thread of its own with a lower priority, and hands on what comes of it."""

from __future__ import annotations

import asyncio
import os
import sys
from threading import Event, current_thread, get_native_id, main_thread

import pytest

from rm_server.engine.giving_way import NICENESS, giving_way


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities for threads")
async def test_the_thread_has_a_lower_priority_and_the_others_keep_theirs() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    assert await giving_way(lambda: os.getpriority(os.PRIO_PROCESS, get_native_id())) == min(19, before + NICENESS)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
    # A thread that has given way is not used for anything else.
    assert await asyncio.to_thread(lambda: os.getpriority(os.PRIO_PROCESS, get_native_id())) == before


async def test_what_it_raises_is_raised() -> None:
    def fail() -> None:
        assert current_thread() is not main_thread()
        raise LookupError("not there")

    with pytest.raises(LookupError, match="not there"):
        await giving_way(fail)


async def test_whoever_is_cancelled_waits_for_nothing() -> None:
    gate, begun = Event(), Event()

    def wait() -> None:
        begun.set()
        gate.wait(60)

    waiting = asyncio.create_task(giving_way(wait))
    await asyncio.to_thread(begun.wait, 60)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.set()
