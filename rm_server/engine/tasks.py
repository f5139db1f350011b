"""Tasks that go on when whoever asked for them goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Tasks:
    """Holds tasks until they are done, for the event loop itself holds them only weakly."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Starts a task."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def to_the_end(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Awaits a task that is not cancelled with its caller: no half of a change is ever left behind."""
        return await asyncio.shield(self.spawn(coroutine))

    async def cancel(self) -> None:
        """Cancels what is not done, and waits until it is."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
