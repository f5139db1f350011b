"""An event loop in a thread of its own, where all waiting of one client is done; and the guard against forks."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from ppo_client.client.errors import ClientMisuse, ForkedAfterUse

T = TypeVar("T")

_used_in_pid: int | None = None
"""The process in which a client first used gRPC."""


def check_not_forked() -> None:
    """Raises ForkedAfterUse in a child whose parent used a client: gRPC's threads did not come along, and it hangs."""
    if _used_in_pid is not None and _used_in_pid != os.getpid():
        raise ForkedAfterUse(
            f"process {_used_in_pid} used a reward client and was then forked into this one; gRPC would hang here. "
            "Start such children with the `spawn` or `forkserver` method, or make the first call after the fork: a "
            "client that was only constructed may be used on both sides"
        )


class LoopThread:
    """Runs coroutines that any thread submits. Made at the first call, so that what is merely constructed can fork."""

    def __init__(self) -> None:
        global _used_in_pid
        _used_in_pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="reward-client", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts the coroutine and returns at once; cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def check_is_other(self) -> None:
        """Raises ClientMisuse on this very thread, where waiting for the loop would never end."""
        if threading.current_thread() is self._thread:
            raise ClientMisuse(
                "a callback of a future waits for its own client, for ever: call from another thread, or use submit()"
            )

    def close(self) -> bool:
        """Cancels what is under way and ends the thread. False: there was nothing to end, as in a forked child."""
        if _used_in_pid != os.getpid() or self._loop.is_closed():
            return False
        self._loop.call_soon_threadsafe(self._loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        return True

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            under_way = asyncio.all_tasks(self._loop)
            for task in under_way:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*under_way, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()
