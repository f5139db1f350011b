"""A worker process: one thread reads, one computes, each load has its own. It ends with the server, or with its GPU.

Started as ``python -m rm_server.engine.worker_process FD LOADER LEVEL``: the number of an inherited socket, what loads
a backend, as ``module:function``, and from which level on our log matters. Messages to it are
``(number, what, *arguments)`` with ``load``, ``unload``, ``compute`` or ``device_memory``; each is answered with
``(number, value)``, and the value may be an RmError. READY and LOG stand in place of a number for what it says unasked.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from logging.handlers import QueueHandler
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

from rm_server.engine.frames import frame, read_frames
from rm_server.engine.giving_way import give_way
from rm_server.engine.host import Host, LoadOrder, imported
from rm_server.errors import RmError

READY = 0
LOG = -1

_log = logging.getLogger(__name__)


class Link:
    """The worker's end of the socket; all of its threads send."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._sending = Lock()

    def send(self, number: int, value: Any) -> None:
        """Sends an answer, or what is said unasked."""
        content = frame((number, value))
        with self._sending:
            self.connection.sendall(content)


class _LogToServer(QueueHandler):
    """The server writes the worker's log, so that all of it looks alike. The queue is the socket."""

    def __init__(self, link: Link) -> None:
        super().__init__(SimpleQueue())
        self._link = link

    def enqueue(self, record: logging.LogRecord) -> None:
        record.worker = os.getpid()
        try:
            self._link.send(LOG, record)
        except OSError:
            return  # The server is gone, and this process goes, too.


def serve(link: Link, host: Host) -> None:
    """Answers messages until the other side closes; then what has not been computed is left."""
    tasks: SimpleQueue[tuple[Any, ...] | None] = SimpleQueue()
    answers: dict[str, Callable[..., Any]] = {
        "compute": host.compute,
        "unload": host.unload,
        "device_memory": host.device_memory,
    }

    def answer(number: int, value: Any) -> None:
        if isinstance(value, RmError) and host.is_lost():
            # A new process can use it. To the server this is a death like any other: it tries again what was under way,
            # and gives up what ends one worker after the other.
            raise RuntimeError("The GPU fails whatever this process asks of it.")
        link.send(number, value)

    def compute() -> None:
        while (task := tasks.get()) is not None:
            number, what, *arguments = task
            answer(number, answers[what](*arguments))

    def load(number: int, order: LoadOrder) -> None:
        if order.gives_way:
            give_way()
        answer(number, host.load(order))

    def guarded(function: Any, *arguments: Any) -> None:
        try:
            function(*arguments)
        except (BrokenPipeError, ConnectionResetError):
            return  # The server went while an answer was on its way.
        except Exception:
            # A thread must not end unnoticed: without the connection the server starts another worker.
            _log.exception("The worker gives up.")
            link.connection.shutdown(socket.SHUT_RDWR)

    Thread(target=guarded, args=(compute,), name="compute", daemon=True).start()
    for number, what, *arguments in read_frames(link.connection):
        if what == "load":
            # Beside the computing thread, so that nobody waits for a swap.
            Thread(target=guarded, args=(load, number, *arguments), name="load", daemon=True).start()
        else:
            tasks.put((number, what, *arguments))
    tasks.put(None)


def main() -> None:
    """Serves the socket that was inherited."""
    # A terminal's Ctrl-C and a service manager's SIGTERM go to all processes; the server drains and then closes us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    descriptor, loader, level = sys.argv[1:]
    link = Link(socket.socket(fileno=int(descriptor)))
    logging.getLogger().addHandler(_LogToServer(link))
    logging.getLogger("rm_server").setLevel(int(level))
    link.send(READY, None)
    # Imports torch while nothing is asked yet; a failure shows again, with its message, at the first load.
    Thread(target=_preload, args=(loader,), name="preload", daemon=True).start()
    serve(link, Host(loader))
    # Not sys.exit: a forward pass under way must not keep a process alive that nobody listens to.
    os._exit(0)


def _preload(loader: str) -> None:
    try:
        imported(loader)
    except Exception:
        _log.exception("%s cannot be imported.", loader)


if __name__ == "__main__":
    main()
