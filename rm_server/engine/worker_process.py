"""A worker process: one thread reads, one computes, each load has its own. It ends when the server is gone.

Started as ``python -m rm_server.engine.worker_process FD LOADER``: the number of an inherited socket, and what loads
a backend, as ``module:function``. Messages to it are ``(number, what, *arguments)`` with ``load``, ``unload`` or
``compute``; each is answered with ``(number, value)``, where the value may be an RmError.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

from rm_server.engine.frames import frame, read_frames
from rm_server.engine.host import Host, imported

READY = "ready"

_log = logging.getLogger(__name__)


def serve(connection: socket.socket, host: Host) -> None:
    """Answers messages until the other side closes; then what has not been computed is left."""
    sending = Lock()
    tasks: SimpleQueue[tuple[Any, ...] | None] = SimpleQueue()

    def answer(number: int, value: Any) -> None:
        with sending:
            connection.sendall(frame((number, value)))

    def compute() -> None:
        while (task := tasks.get()) is not None:
            number, what, *arguments = task
            if what == "compute":
                answer(number, host.compute(*arguments))
            else:
                host.unload(*arguments)
                answer(number, None)

    def load(number: int, order: Any) -> None:
        answer(number, host.load(order))

    def guarded(function: Any, *arguments: Any) -> None:
        try:
            function(*arguments)
        except (BrokenPipeError, ConnectionResetError):
            return  # The server went while an answer was on its way.
        except Exception:
            # A thread must not end unnoticed: without the connection the server starts another worker.
            _log.exception("The worker gives up.")
            connection.shutdown(socket.SHUT_RDWR)

    Thread(target=guarded, args=(compute,), name="compute", daemon=True).start()
    for number, what, *arguments in read_frames(connection):
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
    logging.basicConfig(level=logging.WARNING, format=f"%(asctime)s worker {os.getpid()} %(name)s: %(message)s")
    connection = socket.socket(fileno=int(sys.argv[1]))
    loader = sys.argv[2]
    connection.sendall(frame((0, READY)))
    # Imports torch while nothing is asked yet; a failure shows again, with its message, at the first load.
    Thread(target=_preload, args=(loader,), name="preload", daemon=True).start()
    serve(connection, Host(loader))
    # Not sys.exit: a forward pass under way must not keep a process alive that nobody listens to.
    os._exit(0)


def _preload(loader: str) -> None:
    try:
        imported(loader)
    except Exception:
        _log.exception("%s cannot be imported.", loader)


if __name__ == "__main__":
    main()
