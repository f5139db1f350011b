"""Our service as its users run it: `rm-server serve` in a process of its own, and stubs to it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import psutil
from grpc_health.v1 import health_pb2_grpc
from rm_api.v1 import models_pb2, models_pb2_grpc, scoring_pb2, scoring_pb2_grpc

from bench.workload import Item

# Whatever proxy the environment names, traffic stays on this machine.
CHANNEL_OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1))
_READY = re.compile(r"ready grpc=(127\.0\.0\.1:\d+) ")
_CALL_TIMEOUT_S = 120.0


class Service:
    """A server process with an empty home; ends with its block.

    ``workers`` and ``threads`` of each: as a server chooses them by itself where they are not given. ``settings``: by
    their full names, as of --set.
    """

    def __init__(self, *, workers: int | None = None, threads: int | None = None, **settings: object) -> None:
        chosen = {"engine.workers": workers, "engine.threads_per_worker": threads}
        self._options = {name: value for name, value in chosen.items() if value is not None} | settings
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")

    def __enter__(self) -> Self:
        home = Path(self._folder.name)
        command = [sys.executable, "-m", "rm_server.cli", "serve", "--home", str(home / "home")]
        command += ["--listen", "127.0.0.1:0", "--http", ""]
        for name, value in self._options.items():
            command += ["--set", f"{name}={value}"]
        self._log = home / "server.log"
        with self._log.open("w") as log:
            environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
            self._process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                cwd=Path(__file__).parent.parent,
            )
        assert self._process.stdout is not None
        ready = _READY.match(line := self._process.stdout.readline())
        if ready is None:
            self._process.kill()
            raise RuntimeError(f"The server did not start: {line!r}\n{self._log.read_text()}")
        self.address = ready.group(1)
        self.channel = grpc.insecure_channel(self.address, CHANNEL_OPTIONS)
        self.scoring = scoring_pb2_grpc.ScoringServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)
        self._models = models_pb2_grpc.ModelServiceStub(self.channel)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.channel.close()
        self._process.terminate()
        try:
            self._process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._folder.cleanup()

    def deploy(self, name: str, folder: Path, precision: str = "") -> str:
        """Registers and loads a folder; the selector of the version."""
        register = models_pb2.RegisterVersionRequest(model=name, path=str(folder))
        version = self._models.RegisterVersion(register, timeout=_CALL_TIMEOUT_S).version
        selector = f"{name}@{version.version}"
        load = models_pb2.LoadVersionRequest(selector=selector, precision=precision)
        self._models.LoadVersion(load, timeout=_CALL_TIMEOUT_S)
        return selector

    def unload(self, selector: str) -> None:
        """Takes a version out of memory once its work is done."""
        self._models.UnloadVersion(models_pb2.UnloadVersionRequest(selector=selector), timeout=_CALL_TIMEOUT_S)

    def set_label(self, model: str, label: str, version: int, *, unload_previous: bool = False) -> None:
        """Lets a label name a version, loaded first where necessary: a swap."""
        request = models_pb2.SetLabelRequest(
            model=model, label=label, version=version, load=True, unload_previous=unload_previous
        )
        self._models.SetLabel(request, timeout=_CALL_TIMEOUT_S)

    def queued_items(self) -> int:
        """Items that wait for a turn now."""
        status = self._models.GetServerStatus(models_pb2.GetServerStatusRequest(), timeout=_CALL_TIMEOUT_S)
        return int(status.queued_items)

    def resident_bytes(self) -> int:
        """Resident size of the server and its workers."""
        server = psutil.Process(self._process.pid)
        return sum(process.memory_info().rss for process in (server, *server.children(recursive=True)))


def score_request(selector: str, items: Sequence[Item], run: str = "", *, use_cache: bool = False) -> bytes:
    """A request in bytes; neighbours with the same prompt share a group."""
    message = scoring_pb2.ScoreRequest(model=selector, run=run)
    message.options.bypass_cache = not use_cache
    for item in items:
        if not message.groups or message.groups[-1].prompt.text != item.prompt:
            message.groups.add().prompt.text = item.prompt
        message.groups[-1].completions.add().text = item.completion
    return message.SerializeToString()


def scores_of(raw: bytes) -> list[float]:
    """The scores of an answer in bytes. Raises where an item has none: it would not have been worked for."""
    results = scoring_pb2.ScoreResponse.FromString(raw).results
    for result in results:
        if not result.HasField("score"):
            raise RuntimeError(f"An item has no score: {result.error}")
    return [result.score.value for result in results]
