"""A peer: how it is started, asked and stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from bench.load import Call, Send
from bench.peers.environments import python_with
from bench.workload import Item

ROOT = Path(__file__).parent.parent.parent
START_TIMEOUT_S = 180.0


@dataclass(frozen=True, slots=True)
class Peer:
    """``command``: arguments for its interpreter, where ``{port}``, ``{folder}``, ``{dtype}`` stand for values.

    ``ask``: the body for some items; ``read``: their scores, out of an answer's JSON.
    """

    name: str
    requirements: Sequence[str]
    command: Sequence[str]
    path: str
    ready_path: str
    ask: Callable[[Sequence[Item]], Any]
    read: Callable[[Any], list[float]]
    backend: str = "transformers"
    pairs_with: str = ""
    """A text that the peer puts before each item, as the first of a pair."""
    shares_all: bool = True
    """Its environment sees all of our packages, not torch alone."""

    def calls(self, call_items: Sequence[Sequence[Item]]) -> list[Call]:
        """Requests, ready to be sent."""
        return [
            Call(json.dumps(self.ask(part)).encode(), len(part), sum(item.num_tokens for item in part))
            for part in call_items
        ]


class RunningPeer:
    """A peer's processes; end with the block. Scripts of ours read BENCH_FOLDER and the like.

    They stand still but for `awake`: some look for work a thousand times a second, and take it from who is measured.
    """

    def __init__(self, peer: Peer, folder: Path, *, precision: str, workers: int, threads: int) -> None:
        self.peer = peer
        self._python = python_with(peer.name.split("+")[0], peer.requirements, shares_all=peer.shares_all)
        self._folder = folder
        self._settings = {"precision": precision, "workers": workers, "threads": threads}

    def __enter__(self) -> Self:
        port = _free_port()
        self.base = f"http://127.0.0.1:{port}"
        dtype = {"fp32": "float32", "bf16": "bfloat16"}[str(self._settings["precision"])]
        values = {"port": port, "folder": self._folder, "dtype": dtype}
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [str(self._python), *(part.format(**values) for part in self.peer.command)],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "LD_LIBRARY_PATH": _with_own_libraries(os.environ.get("LD_LIBRARY_PATH", "")),
                "BENCH_FOLDER": str(self._folder),
                "BENCH_PORT": str(port),
                "BENCH_PRECISION": str(self._settings["precision"]),
                "BENCH_WORKERS": str(self._settings["workers"]),
                "BENCH_BACKEND": self.peer.backend,
                "OMP_NUM_THREADS": str(self._settings["threads"]),
                "HF_HUB_OFFLINE": "1",
                # Nothing of what peers report about their users.
                "DO_NOT_TRACK": "1",
                "INFINITY_ANONYMOUS_USAGE_STATS": "0",
                "NO_PROXY": "127.0.0.1",
            },
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self._end()
            raise
        self._send(signal.SIGSTOP)
        return self

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Surrounds whatever asks the peer something."""
        self._send(signal.SIGCONT)
        try:
            yield
        finally:
            self._send(signal.SIGSTOP)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + START_TIMEOUT_S
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.peer.name} ended at its start:\n{self._tail()}")
            try:
                with opener.open(self.base + self.peer.ready_path, timeout=5):
                    return
            except OSError:
                time.sleep(0.25)
        raise RuntimeError(f"{self.peer.name} was not ready after {START_TIMEOUT_S} s:\n{self._tail()}")

    def _tail(self) -> str:
        self._log.seek(0)
        return self._log.read()[-1500:]

    def _processes(self) -> list[psutil.Process]:
        try:
            return [psutil.Process(self._process.pid), *psutil.Process(self._process.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _send(self, number: signal.Signals) -> None:
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _end(self) -> None:
        self._send(signal.SIGCONT)
        processes = self._processes()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(processes, timeout=10)
        for process in alive:
            process.kill()
        self._process.wait()
        self._log.close()


class HttpCalls:
    """Calls to a peer, for ``async with``; as many connections as there are callers."""

    def __init__(self, running: RunningPeer) -> None:
        self._running = running

    async def __aenter__(self) -> Send:
        import aiohttp

        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=300),
            headers={"Content-Type": "application/json"},
        )
        url, read = self._running.base + self._running.peer.path, self._running.peer.read

        async def send(request: bytes) -> list[float]:
            async with self._session.post(url, data=request) as response:
                if response.status != 200:
                    raise RuntimeError(f"{url} answered {response.status}: {(await response.text())[:500]}")
                return read(await response.json(content_type=None))

        return send

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()


def _with_own_libraries(path: str) -> str:
    """This Python's library first: PyTriton's processes would else take the system's, of another minor release."""
    return ":".join(filter(None, (sysconfig.get_config_var("LIBDIR"), path)))


def _free_port() -> int:
    """A port that was free a moment ago; peers cannot say which one they got."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
