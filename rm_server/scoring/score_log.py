"""The score log on its way to disk: taken on the event loop, in no time and no more than fits; written by a thread."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from rm_server.backends.items import Content, is_messages
from rm_server.config import ScoreLogSettings
from rm_server.engine.tasks import Tasks
from rm_server.registry.records import CalibrationRecord
from rm_server.scoring.evaluation import Evaluated
from rm_server.scoring.routing import Route
from rm_server.scoring.score_files import LoggedCall, tidy, write_file
from rm_server.scoring.scorer import ScoreCall

CALL_BYTES, ITEM_BYTES = 1000, 250
"""What a call, and each of its items, takes in memory until it is written, roughly."""

RETRY_S = 10.0

_log = logging.getLogger(__name__)


class LogMetrics(Protocol):
    """What is counted here; see rm_server/metrics."""

    def scores_logged(self, outcome: str, num_items: int) -> None: ...


class ScoreLog:
    """Lives on the event loop. ``folder`` is made when there is something to write.

    A file is written when enough has come together, every ``rotate_s`` at the latest. While the disk cannot be written,
    up to ``max_buffered_mb`` are kept; what comes then is dropped, and counted.
    """

    def __init__(
        self,
        folder: Path,
        settings: ScoreLogSettings,
        metrics: LogMetrics,
        *,
        clock: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """``clock`` in seconds since the epoch. ``draw``: a number from 0 to 1 for each call, to take a share."""
        self._folder = folder
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._draw = draw
        self._waiting: list[LoggedCall] = []
        self._num_items = 0
        self._num_bytes = 0
        self._num_bytes_at_disk = 0
        self._is_file_full = asyncio.Event()
        self._one_write = asyncio.Lock()
        self._tasks = Tasks()

    def scored(
        self, call: ScoreCall, route: Route, evaluated: Evaluated, calibration: CalibrationRecord | None
    ) -> None:
        """A call was answered. ``calibration``: what its scores went through."""
        settings, num_items = self._settings, len(evaluated.outcomes)
        if not num_items or self._draw() >= settings.share:
            return
        texts = None
        # As the file's table will have it: each item beside its call's id and its prompt.
        num_bytes = CALL_BYTES + (ITEM_BYTES + len(call.request_id)) * num_items
        if settings.log_texts:
            texts = [(prompt, completion) for prompt, completions in call.groups for completion in completions]
            num_bytes += sum(
                len(completions) * _num_bytes(prompt) + sum(map(_num_bytes, completions))
                for prompt, completions in call.groups
            )
        if self._num_bytes + self._num_bytes_at_disk + num_bytes > settings.max_buffered_mb * 1024 * 1024:
            self._metrics.scores_logged("dropped", num_items)
            return
        group_sizes = tuple(len(completions) for _, completions in call.groups)
        self._waiting.append(
            LoggedCall(self._clock(), call.request_id, call.run, route, calibration, group_sizes, evaluated, texts)
        )
        self._num_items += num_items
        self._num_bytes += num_bytes
        # A file of all that may wait would leave no room for what comes while it is written.
        file_mb = min(settings.rotate_mb, settings.max_buffered_mb / 2)
        if self._num_items >= settings.rotate_rows or self._num_bytes >= file_mb * 1024 * 1024:
            self._is_file_full.set()

    async def run(self) -> None:
        """Writes files for ever."""
        try:
            await asyncio.to_thread(tidy, self._folder, 0)
        except OSError as error:  # the log is written all the same
            _log.warning("What was left half written in %s cannot be removed: %s", self._folder, error)
        while True:
            try:
                async with asyncio.timeout(self._settings.rotate_s):
                    await self._is_file_full.wait()
            except TimeoutError:
                pass
            try:
                await self.flush()
            except OSError as error:
                _log.warning("The score log cannot be written to %s: %s", self._folder, error)
                await asyncio.sleep(RETRY_S)
            except Exception:
                # Whatever it is: who gives up here never writes again.
                _log.exception("The score log could not be written; the next try comes soon.")
                await asyncio.sleep(RETRY_S)

    async def flush(self) -> None:
        """Writes what there is as one file. Raises OSError; nothing is lost then. Goes on when it is cancelled."""
        await self._tasks.to_the_end(self._flush())

    async def stop(self) -> None:
        """Writes what there is, once more."""
        try:
            await self.flush()
        except OSError as error:
            self._metrics.scores_logged("dropped", self._num_items)
            _log.warning("%d scores are not in the log: %s", self._num_items, error)

    async def _flush(self) -> None:
        async with self._one_write:
            self._is_file_full.clear()
            if not self._waiting:
                return
            batch, self._waiting = self._waiting, []
            num_items, self._num_items = self._num_items, 0
            self._num_bytes_at_disk, self._num_bytes = self._num_bytes, 0
            try:
                await asyncio.to_thread(write_file, self._folder, batch)
                self._metrics.scores_logged("written", num_items)
            except BaseException:
                self._waiting = batch + self._waiting
                self._num_items += num_items
                self._num_bytes += self._num_bytes_at_disk
                raise
            finally:
                self._num_bytes_at_disk = 0
            await asyncio.to_thread(tidy, self._folder, self._settings.keep_mb)


def _num_bytes(content: Content) -> int:
    if isinstance(content, str):
        return len(content)
    if is_messages(content):
        return sum(len(message.content) for message in content)
    return 8 * len(content)
