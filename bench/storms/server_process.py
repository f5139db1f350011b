"""`rm-server serve` on a home and an address that stay: to be killed and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from bench.service import CHANNEL_OPTIONS
from rm_server.registry.home import Home


class ServerProcess:
    """One server without workers of its own; its log is beside the home."""

    def __init__(self, home: Home) -> None:
        self._home = home.path
        self._log = Path(f"{home.path}.log")
        self.address = f"127.0.0.1:{free_port()}"
        self._environment = {
            **os.environ,
            **{"OMP_NUM_THREADS": "1", "RM_CATALOG": home.catalog, "RM_ARTIFACTS": home.artifacts},
            **{"RM_SERVER_ENGINE_WORKERS": "0", "RM_SERVER_HTTP": "127.0.0.1:0"},
        }
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Returns when it answers; raises RuntimeError with the log where it ends instead."""
        command = [sys.executable, "-m", "rm_server.cli", "serve", "--home", str(self._home), "--listen", self.address]
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=self._environment
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("ready"):
            raise RuntimeError(f"The server did not start: {line!r}\n{self._log.read_text()}")

    def kill(self, number: signal.Signals) -> None:
        """Returns when it has ended."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.communicate(timeout=60)
            self._process = None

    @contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        """A channel to it, which lasts for a block."""
        with grpc.insecure_channel(self.address, CHANNEL_OPTIONS) as channel:
            yield channel


def seconds_until(condition: Callable[[], bool], deadline_s: float) -> float:
    """How long it took, to 20 ms. Raises TimeoutError where it takes longer than the deadline."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() > began + deadline_s:
            raise TimeoutError(f"not within {deadline_s:g} s")
        time.sleep(0.02)
    return time.monotonic() - began


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
