"""The server's side of those who compute: a worker process, or a thread of the server's own process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

from rm_server.backends.compute_environment import compute_environment
from rm_server.backends.items import Batch
from rm_server.engine.frames import FrameReader, frame
from rm_server.engine.host import Computed, Host, LoadOrder, LoadReport
from rm_server.engine.worker_process import LOG, READY
from rm_server.errors import RmError, WorkerFailed
from rm_server.registry.records import VersionKey

DeathHandler = Callable[["Worker", str], None]

START_TIMEOUT_S = 60.0

_log = logging.getLogger(__name__)


class WorkerDied(Exception):
    """The worker ended while it had something to do. The pool decides what becomes of that."""


class Worker(Protocol):
    """One life of a worker; a dead one is replaced by another. Used from the event loop alone.

    Everything may raise WorkerDied; then the death handler has been, or is being, called.
    """

    @property
    def pid(self) -> int:
        """Of the process that computes."""
        ...

    @property
    def is_alive(self) -> bool:
        """Whether it has not died or been stopped."""
        ...

    async def start(self, on_death: DeathHandler) -> None:
        """Raises WorkerFailed when it does not come up; otherwise ``on_death`` is told once if it dies unasked."""
        ...

    async def load(self, order: LoadOrder) -> LoadReport:
        """Loads a version beside the computing. Raises what the backend raises; then nothing is left of it."""
        ...

    async def unload(self, key: VersionKey) -> None:
        """Frees a version, after the batches that were sent before."""
        ...

    async def device_memory(self, device: str) -> int | None:
        """Bytes that are free on the GPU that it computes on; None: it is none. After the batches that were sent."""
        ...

    def compute(
        self, keys: tuple[VersionKey, ...], batch: Batch, *, is_alone: bool
    ) -> asyncio.Future[Computed | RmError]:
        """Sends a batch; batches are computed in the order in which they were sent. See `Host.compute`."""
        ...

    def kill(self) -> None:
        """Has it die, as of itself; nothing happens where it is a thread."""
        ...

    async def stop(self) -> None:
        """Ends it at once, whatever it does."""
        ...


class ProcessWorker(asyncio.Protocol):
    """A worker process with ``threads`` threads; ``loader`` as ``module:function``.

    ``gpu``: it sees this one alone, counted from 0; None: those that this process sees.
    """

    def __init__(self, loader: str, threads: int, gpu: int | None = None) -> None:
        self._loader = loader
        self._threads = threads
        self._gpu = gpu
        self._reader = FrameReader()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._is_stopping = False
        self._ended = asyncio.Event()

    @property
    def is_alive(self) -> bool:
        return not self._ended.is_set()

    async def start(self, on_death: DeathHandler) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_death = on_death
        try:
            ours = await asyncio.to_thread(self._spawn)
        except OSError as error:
            raise WorkerFailed(f"A worker process could not be started: {error}.") from error
        ready = self._waiting[READY] = self._loop.create_future()
        self._transport, _ = await self._loop.create_unix_connection(lambda: self, sock=ours)
        try:
            await asyncio.wait_for(ready, START_TIMEOUT_S)
        except (WorkerDied, TimeoutError) as error:
            await self.stop()
            raise WorkerFailed(f"A worker process did not start: {error or 'no word from it'}.") from error
        except asyncio.CancelledError:
            await self.stop()
            raise

    async def load(self, order: LoadOrder) -> LoadReport:
        report = await self._ask("load", order)
        if isinstance(report, RmError):
            raise report
        assert isinstance(report, LoadReport)
        return report

    async def unload(self, key: VersionKey) -> None:
        await self._ask("unload", key)

    async def device_memory(self, device: str) -> int | None:
        free: int | None = await self._ask("device_memory", device)
        return free

    def compute(
        self, keys: tuple[VersionKey, ...], batch: Batch, *, is_alone: bool
    ) -> asyncio.Future[Computed | RmError]:
        return self._ask("compute", keys, batch, is_alone)

    def kill(self) -> None:
        self._process.kill()

    async def stop(self) -> None:
        self._is_stopping = True
        self._transport.close()
        self._process.kill()
        await self._ended.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def data_received(self, data: bytes) -> None:
        """Answers came."""
        for number, value in self._reader.feed(data):
            if number == LOG:
                logging.getLogger(value.name).handle(value)
            else:
                _set_result(self._waiting.pop(number), value)

    def connection_lost(self, _: Exception | None) -> None:
        """The process is gone, or going: nothing it has not answered will be answered."""
        self._loop.create_task(self._bury())

    async def _bury(self) -> None:
        # Its end of the socket is closed, so whatever is left of the process has nothing more to do.
        self._process.kill()
        reason = _described(await asyncio.to_thread(self._process.wait))
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(WorkerDied(reason))
        self._ended.set()
        if not self._is_stopping:
            self._on_death(self, reason)

    def _ask(self, what: str, *arguments: Any) -> asyncio.Future[Any]:
        self._number += 1
        future = self._waiting[self._number] = self._loop.create_future()
        if self._transport.is_closing():
            # Dead, and perhaps not buried yet.
            del self._waiting[self._number]
            future.set_exception(WorkerDied("it had ended before"))
        else:
            self._transport.write(frame((self._number, what, *arguments)))
        return future

    def _spawn(self) -> socket.socket:
        """Starts the process; returns our end of the connection to it."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = self._process_at(theirs)
            except BaseException:
                ours.close()
                raise
        return ours

    def _process_at(self, connection: socket.socket) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            # -P: what may be imported is what this process may import, no more (PYTHONPATH below).
            [
                *(sys.executable, "-P", "-m", "rm_server.engine.worker_process"),
                *(str(connection.fileno()), self._loader, str(_log.getEffectiveLevel())),
            ],
            pass_fds=[connection.fileno()],
            stdin=subprocess.DEVNULL,
            # A terminal's Ctrl-C is not for it. Not a session: to the kernel that is a group of its own, and what gives
            # way in one group does not give way to the other (sched_autogroup).
            process_group=0,
            env={
                **compute_environment(self._threads, self._gpu),
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            },
        )


class ThreadWorker:
    """Computes in a thread of this process, for tests and small use."""

    def __init__(self, loader: str) -> None:
        self._host = Host(loader)
        self._tasks: SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None] = SimpleQueue()

    @property
    def pid(self) -> int:
        return os.getpid()

    @property
    def is_alive(self) -> bool:
        return True

    async def start(self, on_death: DeathHandler) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = Thread(target=self._work, name="compute", daemon=True)
        self._thread.start()

    async def load(self, order: LoadOrder) -> LoadReport:
        report = await asyncio.to_thread(self._host.load, order)
        if isinstance(report, RmError):
            raise report
        return report

    async def unload(self, key: VersionKey) -> None:
        await self._ask(lambda: self._host.unload(key))

    async def device_memory(self, device: str) -> int | None:
        free: int | None = await self._ask(lambda: self._host.device_memory(device))
        return free

    def compute(
        self, keys: tuple[VersionKey, ...], batch: Batch, *, is_alone: bool
    ) -> asyncio.Future[Computed | RmError]:
        return self._ask(lambda: self._host.compute(keys, batch, is_alone))

    def kill(self) -> None:
        """Nobody can end a thread."""

    async def stop(self) -> None:
        self._tasks.put(None)

    def _ask(self, task: Callable[[], Any]) -> asyncio.Future[Any]:
        future = self._loop.create_future()
        self._tasks.put((future, task))
        return future

    def _work(self) -> None:
        while (asked := self._tasks.get()) is not None:
            future, task = asked
            value = task()
            with suppress(RuntimeError):  # The loop is closed: nobody waits.
                self._loop.call_soon_threadsafe(_set_result, future, value)


def _set_result(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _described(status: int) -> str:
    """``Popen.returncode`` in words."""
    if status >= 0:
        return f"it ended with status {status}"
    return f"it was ended by {signal.Signals(-status).name}"
