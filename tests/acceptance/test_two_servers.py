"""Two servers on a real PostgreSQL behind a real nginx: what dies and comes back is not seen by who scores."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from postgresql import new_database, running_postgresql
from rm_api.v1 import experiments_pb2, experiments_pb2_grpc, models_pb2, models_pb2_grpc
from running_server import LOCAL_ONLY, make_rules_version

from ppo_client import RewardClient

NGINX_CONF = Path(__file__).parents[2] / "deploy" / "nginx" / "nginx.conf"
CONVERGE_S = 2.0
# nginx would make these in folders of the system's.
TEMPORARY = "".join(f"    {name}_temp_path {name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))


class Process:
    """One `rm-server serve` on a port of its own, to be killed and started again."""

    def __init__(self, home: Path, catalog: str, artifacts: Path) -> None:
        home.mkdir()
        self._home = home
        self.address = f"127.0.0.1:{free_port()}"
        self._environment = {
            **os.environ,
            **{"OMP_NUM_THREADS": "1", "RM_CATALOG": catalog, "RM_ARTIFACTS": str(artifacts)},
            **{"RM_SERVER_ENGINE_WORKERS": "0", "RM_SERVER_HTTP": "127.0.0.1:0"},
        }
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        command = [sys.executable, "-m", "rm_server.cli", "serve", "--home", str(self._home), "--listen", self.address]
        with (self._home / "log").open("a") as log:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=self._environment
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("ready"), f"{line!r}, log: {(self._home / 'log').read_text()}"

    def kill(self, number: signal.Signals) -> None:
        """Returns when it has ended."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.communicate(timeout=60)
            self._process = None

    @contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        with grpc.insecure_channel(self.address, LOCAL_ONLY) as channel:
            yield channel


class Scoring:
    """Threads that score without pause, each in its own way, and note what happens."""

    WAYS = ("m", "m@stable", "m@1", "new runs")

    def __init__(self, target: str) -> None:
        self._client = RewardClient(target, timeout_s=60.0)
        self._stop = threading.Event()
        self.failures: list[str] = []
        self.num_answers = dict.fromkeys(self.WAYS, 0)
        self.versions: dict[str, set[int]] = {way: set() for way in self.WAYS}
        self._threads = [threading.Thread(target=self._score, args=(way,)) for way in self.WAYS]

    def __enter__(self) -> Scoring:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._client.close()

    def wait_for_more(self, ways: tuple[str, ...] = WAYS, number: int = 20) -> None:
        """Until each way was answered so many times more."""
        wanted = {way: self.num_answers[way] + number for way in ways}
        wait_until(lambda: all(self.num_answers[way] >= wanted[way] for way in ways), 60.0)

    def _score(self, way: str) -> None:
        for number in itertools.count():
            if self._stop.is_set():
                return
            model, run = (way, "steady") if way != "new runs" else ("m", f"run-{number}")
            try:
                scores = self._client.score(model, prompts=["p"] * 2, completions=["a b", "c"], run=run)
                assert len(scores.values) == 2
                self.versions[way].add(scores.version)
                self.num_answers[way] += 1
            except Exception as error:
                self.failures.append(f"{way}: {type(error).__name__}: {error}")
            self._stop.wait(0.01)


def test_what_dies_and_comes_back_is_not_seen_by_who_scores(tmp_path: Path) -> None:
    with ExitStack() as stack:
        nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
        if nginx is None:
            pytest.skip("nginx is not installed: apt-get install nginx")
        database = stack.enter_context(running_postgresql())
        catalog = stack.enter_context(new_database(database.url))
        servers = [Process(tmp_path / name, catalog, tmp_path / "artifacts") for name in ("one", "two")]
        for server in servers:
            stack.callback(server.kill, signal.SIGTERM)
            server.start()
        one, two = servers
        stubs = [models_pb2_grpc.ModelServiceStub(stack.enter_context(server.channel())) for server in servers]
        for number in (1, 2):
            rules = {"type": "length", "unit": "characters", "min": 0, "max": number * 10}
            folder = make_rules_version(tmp_path / f"v{number}", rules)
            stubs[0].RegisterVersion(models_pb2.RegisterVersionRequest(model="m", path=str(folder)))
        label(stubs[0], 1)
        converge(stubs, 1)

        target = stack.enter_context(running_nginx(nginx, tmp_path / "nginx", servers))
        with Scoring(target) as scoring:
            scoring.wait_for_more()
            one.kill(signal.SIGKILL)
            scoring.wait_for_more()
            one.start()
            scoring.wait_for_more()

            database.stop("immediate")
            scoring.wait_for_more(("m", "m@stable", "m@1"))
            known_before = scoring.num_answers["new runs"]
            database.start()
            wait_until(lambda: scoring.num_answers["new runs"] >= known_before + 20, 60.0)

            # Both follow what is changed through one of them, after all that.
            wait_until(lambda: is_reachable(stubs[1]), 30.0)
            label(stubs[1], 2)
            converge(stubs, 2)
            split(two, {"a": 1, "b": 2})
            wait_until(lambda: splits_of(one) == splits_of(two) == {"a": 1, "b": 2}, CONVERGE_S)
            scoring.wait_for_more()
            two.kill(signal.SIGTERM)
            scoring.wait_for_more()

        assert scoring.failures == []
        # The run keeps its version, whoever answers; who follows the label follows it.
        assert scoring.versions["m"] == scoring.versions["m@1"] == {1}
        assert scoring.versions["m@stable"] == scoring.versions["new runs"] == {1, 2}


def label(stub: models_pb2_grpc.ModelServiceStub, version: int) -> None:
    stub.SetLabel(models_pb2.SetLabelRequest(model="m", label="stable", version=version, load=True))


def converge(stubs: list[models_pb2_grpc.ModelServiceStub], version: int) -> None:
    """Both servers let the label name the version, and have it loaded, in time."""

    def has_it(stub: models_pb2_grpc.ModelServiceStub) -> bool:
        (model,) = stub.ListModels(models_pb2.ListModelsRequest(model="m")).models
        ready = {each.version for each in model.versions if each.state == models_pb2.VERSION_STATE_READY}
        return model.labels["stable"] == version and version in ready

    wait_until(lambda: all(has_it(stub) for stub in stubs), CONVERGE_S)


def is_reachable(stub: models_pb2_grpc.ModelServiceStub) -> bool:
    try:
        stub.ListHistory(models_pb2.ListHistoryRequest(model="m", limit=1))
    except grpc.RpcError:
        return False
    return True


def split(server: Process, arms: dict[str, int]) -> None:
    with server.channel() as channel:
        message = experiments_pb2.Split(model="m")
        for name, version in arms.items():
            message.arms.add(name=name, version=version, weight=1.0)
        request = experiments_pb2.SetSplitRequest(split=message)
        experiments_pb2_grpc.ExperimentServiceStub(channel).SetSplit(request)


def splits_of(server: Process) -> dict[str, int]:
    with server.channel() as channel:
        stub = experiments_pb2_grpc.ExperimentServiceStub(channel)
        splits = stub.ListSplits(experiments_pb2.ListSplitsRequest(model="m")).splits
        return {arm.name: arm.version for each in splits for arm in each.arms}


@contextmanager
def running_nginx(program: str, folder: Path, servers: list[Process]) -> Iterator[str]:
    """The address of an nginx with our configuration before the servers."""
    folder.mkdir()
    address = f"127.0.0.1:{free_port()}"
    text = NGINX_CONF.read_text().replace("http {\n", "http {\n" + TEMPORARY)
    for known, actual in zip(
        ("127.0.0.1:50050", "127.0.0.1:50051", "127.0.0.1:50052"),
        (address, *(server.address for server in servers)),
        strict=True,
    ):
        assert text.count(known) == 1
        text = text.replace(known, actual)
    (folder / "nginx.conf").write_text(text)
    command = [program, "-p", str(folder), "-c", "nginx.conf", "-g", "daemon off;"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        wait_until(lambda: is_listening(address), 30.0)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=60)


def is_listening(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def wait_until(condition: Callable[[], bool], deadline_s: float) -> None:
    """Raises AssertionError where it takes longer."""
    until = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < until, f"not within {deadline_s:g} s"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
