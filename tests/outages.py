"""A training run whose reward server is killed twice on the way, without warning, and comes back after a while."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import grpc
from rm_api.v1 import models_pb2, models_pb2_grpc
from running_server import LOCAL_ONLY, make_rules_version
from tiny_policies import make_config, read_jsonl, save_id_prompts, save_policy, without_times

from ppo_client import RewardClient
from ppo_client.client.scores import Scores
from ppo_client.ppo import PPOTrainer

_READY = re.compile(r"ready grpc=(\S+) http=(\S+)\n")


class ServerProcess:
    """`rm-server serve` on one port, whenever it runs."""

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True)
        self._home = home
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        command = [sys.executable, "-m", "rm_server.cli", "serve", "--home", str(self._home), "--listen", self.address]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RM_SERVER_HTTP": "127.0.0.1:0"}
        with (self._home / "server.log").open("a") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert _READY.fullmatch(line), f"{line!r}, log: {(self._home / 'server.log').read_text()}"

    def kill(self) -> None:
        """Without warning."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def deploy_even(self, folder: Path) -> None:
        """`even@1`: the share of even token ids."""
        rules = make_rules_version(folder, {"type": "token_id_share", "modulus": 2, "residue": 0})
        with grpc.insecure_channel(self.address, LOCAL_ONLY) as channel:
            models = models_pb2_grpc.ModelServiceStub(channel)
            models.RegisterVersion(models_pb2.RegisterVersionRequest(model="even", path=str(rules)))
            models.SetLabel(models_pb2.SetLabelRequest(model="even", label="stable", version=1, load=True))


class Outages:
    """Passes calls on to a client; at some of them the server goes away, before it can answer or even get them."""

    def __init__(self, client: RewardClient, server: ServerProcess, outage_s: float, at_calls: tuple[int, int]) -> None:
        self._client, self._server, self._outage_s = client, server, outage_s
        self._before, self._during = at_calls
        self._num_calls = 0
        self.restarts: list[threading.Thread] = []

    def submit(self, model: str, **texts: Any) -> Future[Scores]:
        self._num_calls += 1
        if self._num_calls == self._before:
            self._go_away()
        future = self._client.submit(model, **texts)
        if self._num_calls == self._during:
            self._go_away()
        return future

    def _go_away(self) -> None:
        self._server.kill()
        restart = threading.Thread(target=self._come_back)
        restart.start()
        self.restarts.append(restart)

    def _come_back(self) -> None:
        time.sleep(self._outage_s)  # the outage itself
        self._server.start()


def run_through_outages(folder: Path, *, outage_s: float, num_steps: int = 40) -> tuple[list[Any], list[Any], int]:
    """Rows of an undisturbed run and of one with two outages, without times, and how often the latter's server died."""
    save_policy(folder / "policy", "llama")
    save_id_prompts(folder / "prompts.jsonl")
    server = ServerProcess(folder / "home")
    server.start()
    num_restarts = 0
    try:
        server.deploy_even(folder / "even")
        for name in ("undisturbed", "disturbed"):
            with RewardClient(server.address, run=name, timeout_s=1.0) as client:
                source: Any = client
                if name == "disturbed":
                    source = Outages(client, server, outage_s, at_calls=(10, 25))
                _train(folder, name, source, num_steps)
                for restart in getattr(source, "restarts", ()):
                    restart.join()
                    num_restarts += 1
    finally:
        server.kill()
    undisturbed, disturbed = (
        without_times(read_jsonl(folder / name / "metrics.jsonl")) for name in ("undisturbed", "disturbed")
    )
    return undisturbed, disturbed, num_restarts


def _train(folder: Path, name: str, source: Any, num_steps: int) -> None:
    train = {"output": str(folder / name), "num_steps": num_steps, "checkpoint_every_steps": 0}
    config = make_config(folder, reward={"model": "even@1", "timeout_s": 2.0, "patience_s": 300.0}, train=train)
    PPOTrainer(config, source).train()
