"""`rm-server serve` as a process: what it asks of Python and the system, and the signals that end it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys

from rm_server import log
from rm_server.app import App, cancel
from rm_server.config import ConfigError, ServeSettings

logger = logging.getLogger(__name__)

GC_THRESHOLD = 20_000
"""Objects that may be new before Python looks for cycles among them."""

OPEN_FILES = 65_536
"""As in deploy/systemd; where the system allows fewer, as many as it does."""


def run(settings: ServeSettings) -> int:
    """Serves until SIGTERM or SIGINT, drains, and returns the exit status. A second signal ends it at once.

    Raises ConfigError on Windows: signals and workers' sockets are Unix's.
    """
    if sys.platform == "win32":
        raise ConfigError("rm-server serve runs on Linux and macOS; on Windows, start it in WSL or in a container.")
    import uvloop

    log.set_up(settings.log.level, settings.log.format)
    # `engine.encode_threads` says how many cores tokenizers get; the rest is for who computes.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # A call leaves hundreds of objects and hardly ever a cycle: at Python's own 700, every other call would collect.
    gc.set_threshold(GC_THRESHOLD, 20, 20)
    _allow_open_files()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings))
    return 0


def _allow_open_files() -> None:
    """Each connection takes a file descriptor, and 1 024, which many systems begin with, are soon used up."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _serve(settings: ServeSettings) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal() -> None:
        stop.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    app = App(settings)
    loop.add_signal_handler(signal.SIGHUP, app.reload)
    starting = asyncio.ensure_future(app.start())
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        await cancel(starting)
        return
    await starting
    print(f"ready grpc={app.grpc_address} http={app.http_address or '-'}", flush=True)
    logger.info("serving", extra={"grpc": app.grpc_address, "http": app.http_address, "home": str(settings.home)})
    await stopping
    await app.stop()
    logger.info("stopped")
