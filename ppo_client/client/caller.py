"""A call that reaches a server if any can be reached in time: targets, retries, hedging, one deadline for all of it."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from ppo_client.client.channels import Channels, Stubs, send
from ppo_client.client.errors import (
    DeadlineExceeded,
    Draining,
    QueueFull,
    RewardClientError,
    ServerUnreachable,
)
from ppo_client.client.retry import RetryBudget, is_work_failure, pause_s
from ppo_client.client.settings import ClientSettings
from ppo_client.client.targets import Targets
from ppo_client.client.trace_context import trace_metadata

Method = Callable[[Stubs], Callable[..., Any]]
"""Picks one method of a server, ``lambda stubs: stubs.scoring.Score`` say."""

_log = logging.getLogger("ppo_client")


@dataclass(slots=True)
class Attempts:
    """What one call has been through."""

    deadline: float
    """On the caller's clock."""
    num_failed: int = 0
    num_work_failures: int = 0
    last_error: RewardClientError | None = None


class Caller:
    """Sends calls for one client. Lives on one event loop."""

    def __init__(
        self,
        settings: ClientSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.clock = clock
        self.channels = Channels(settings)
        self.targets = Targets(settings.targets, start=int(draw() * len(settings.targets)))
        self._settings = settings
        self._draw = draw
        self._budget = RetryBudget(settings.retry, clock())
        self._slots = asyncio.Semaphore(settings.max_in_flight)

    async def call(self, method: Method, request: Message, deadline: float, *, is_hedged: bool = False) -> Any:
        """The response. Raises RewardClientError once repeating is of no use, or the deadline would pass first.

        ``deadline``: on this object's clock. ``is_hedged``: as the settings say.
        """
        attempts = Attempts(deadline)
        avoid: set[int] = set()
        while True:
            index = self.targets.choose(self.clock(), avoid)
            try:
                if is_hedged and self._settings.hedge_after_s is not None and len(self._settings.targets) > 1:
                    return await self._attempt_hedged(method, request, attempts, index, self._settings.hedge_after_s)
                return await self._attempt(method, request, attempts, index)
            except RewardClientError as error:
                avoid.add(index)
                await self.pause(error, attempts, index)

    async def pause(self, error: RewardClientError, attempts: Attempts, index: int | None = None) -> None:
        """Waits until the call may be repeated, or raises its error. ``index``: the target that failed, if one did."""
        attempts.num_failed += 1
        attempts.num_work_failures += is_work_failure(error)
        error.num_attempts = attempts.num_failed
        while True:
            now = self.clock()
            pause = pause_s(
                self._settings.retry,
                error,
                attempt=attempts.num_failed,
                num_work_failures=attempts.num_work_failures,
                remaining_s=attempts.deadline - now,
                is_other_target_ready=index is not None and self.targets.is_other_ready(now, than=index),
                draw=self._draw(),
            )
            if pause is None:
                raise error from attempts.last_error
            if self._budget.take(now):
                break
            # Out of retries: look again later; not at once, though another target may be ready.
            await asyncio.sleep(max(pause, self._settings.retry.base_backoff_s))
        attempts.last_error = error
        _log.info("%s: %s; again in %.2f s", type(error).__name__, error, pause)
        await asyncio.sleep(pause)

    def close(self) -> None:
        """Closes the connections."""
        self.channels.close()

    async def _attempt(self, method: Method, request: Message, attempts: Attempts, index: int) -> Any:
        await self._take_slot(attempts)
        began = self.clock()
        try:
            response = await send(
                method(self.channels.stubs(index)),
                request,
                timeout_s=max(attempts.deadline - began, 0.0),
                metadata=self.channels.metadata + trace_metadata(),
            )
        except RewardClientError as error:
            error.target = self.targets.name(index)
            error.request_id = getattr(request, "request_id", None)
            self._note_failure(index, error, began)
            raise
        finally:
            self._slots.release()
        if self.targets.succeeded(index):
            _log.warning("%s answers again", self.targets.name(index))
        self._budget.succeeded()
        return response

    async def _take_slot(self, attempts: Attempts) -> None:
        if not self._slots.locked():
            await self._slots.acquire()
            return
        try:
            async with asyncio.timeout(attempts.deadline - self.clock()):
                await self._slots.acquire()
        except TimeoutError:
            raise DeadlineExceeded(
                f"the deadline passed while {self._settings.max_in_flight} other requests of this client were "
                "under way (max_in_flight); give a longer timeout_s, or submit less at a time"
            ) from attempts.last_error

    def _note_failure(self, index: int, error: RewardClientError, began: float) -> None:
        if isinstance(error, (ServerUnreachable, Draining)):
            if self.targets.failed(index, self.clock(), began, self._draw()):
                _log.warning("%s is left out for a while: %s", self.targets.name(index), error)
        elif isinstance(error, QueueFull) and error.retry_after_s is not None:
            self.targets.busy(index, self.clock(), error.retry_after_s)

    async def _attempt_hedged(
        self, method: Method, request: Message, attempts: Attempts, index: int, hedge_after_s: float
    ) -> Any:
        """The first answer of two servers; the second one is asked when the first takes long."""
        tasks = [asyncio.create_task(self._attempt(method, request, attempts, index))]
        try:
            await asyncio.wait(tasks, timeout=hedge_after_s)
            now = self.clock()
            if not tasks[0].done() and self.targets.is_other_ready(now, than=index) and self._budget.take(now):
                other = self.targets.choose(now, avoid=(index,))
                tasks.append(asyncio.create_task(self._attempt(method, request, attempts, other)))
            while True:
                done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if answers := [task.result() for task in done if task.exception() is None]:
                    return answers[0]
                if not waiting:
                    return tasks[0].result()  # raises: all failed
                tasks = list(waiting)
        finally:
            for task in tasks:
                task.cancel()
