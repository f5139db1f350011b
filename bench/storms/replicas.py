"""Two servers on a real PostgreSQL behind a real nginx: whether who scores sees what dies and comes back."""

from __future__ import annotations

import itertools
import json
import signal
import tempfile
from contextlib import ExitStack
from pathlib import Path

import grpc
from rm_api.v1 import experiments_pb2, experiments_pb2_grpc, models_pb2, models_pb2_grpc

from bench.measurement import Bench
from bench.storms.nginx import find_nginx, running_nginx
from bench.storms.postgresql import NotInstalled, new_database, running_postgresql
from bench.storms.scoring import Scoring
from bench.storms.server_process import ServerProcess, seconds_until
from rm_server.registry.home import Home
from rm_server.registry.manifest import Manifest, write_manifest

DEADLINE_S = 60.0
"""Of anything that is waited for; what takes longer ends the storm."""


def run(bench: Bench) -> None:
    """Each round kills a server, crashes the database, moves label and split, and stops the other server."""
    num_rounds = 1 if bench.quick else 5
    try:
        with ExitStack() as stack:
            replicas = Replicas(stack)
            _storm(bench, replicas, num_rounds)
    except NotInstalled as error:
        bench.row(not_run=str(error))


def _storm(bench: Bench, replicas: Replicas, num_rounds: int) -> None:
    times: dict[str, list[float]] = {"label": [], "split": []}
    with Scoring(replicas.target) as scoring:
        for number in range(num_rounds):
            one, two = replicas.servers if number % 2 == 0 else replicas.servers[::-1]
            scoring.wait_for_more()
            one.kill(signal.SIGKILL)
            scoring.wait_for_more()
            one.start()
            scoring.wait_for_more()

            replicas.database.stop("immediate")
            # New runs wait for the database: it must know them first.
            scoring.wait_for_more(("m", "m@stable", "m@1"))
            replicas.database.start()
            scoring.wait_for_more()

            seconds_until(lambda two=two: is_reachable(two), DEADLINE_S)  # type: ignore[misc]
            for version in (2, 1):
                set_label(two, version)
                times["label"].append(replicas.seconds_to_label(version))
                arms = {"a": version, "b": 3 - version}
                set_split(two, arms)
                times["split"].append(replicas.seconds_to_split(arms))
            scoring.wait_for_more()
            two.kill(signal.SIGTERM)
            scoring.wait_for_more()
            two.start()
    for way in Scoring.WAYS:
        bench.row(what=way, answers=scoring.num_answers[way], versions=sorted(scoring.versions[way]))
    for what, seconds in times.items():
        bench.row(what=f"{what} followed", times=len(seconds), longest_s=round(max(seconds), 3))
    for failure in scoring.failures[:20]:
        bench.row(what="problem", text=failure)
    bench.figure("replica_failed", len(scoring.failures))
    bench.figure("converge_s", max(itertools.chain(*times.values())))


class Replicas:
    """Database, servers and nginx, until the stack ends. Model ``m`` has versions 1 and 2; ``stable`` names 1.

    Raises NotInstalled where a program is missing.
    """

    def __init__(self, stack: ExitStack) -> None:
        nginx = find_nginx()
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        self.database = stack.enter_context(running_postgresql())
        catalog = stack.enter_context(new_database(self.database.url))
        homes = [Home(folder / name, catalog, str(folder / "artifacts")) for name in ("one", "two")]
        self.servers = [ServerProcess(home) for home in homes]
        for server in self.servers:
            stack.callback(server.kill, signal.SIGTERM)
            server.start()
        with self.servers[0].channel() as channel:
            stub = models_pb2_grpc.ModelServiceStub(channel)
            for number in (1, 2):
                request = models_pb2.RegisterVersionRequest(model="m", path=str(_make_version(folder, number)))
                stub.RegisterVersion(request)
        set_label(self.servers[0], 1)
        self.seconds_to_label(1)
        addresses = [server.address for server in self.servers]
        self.target = stack.enter_context(running_nginx(nginx, folder / "nginx", addresses))

    def seconds_to_label(self, version: int) -> float:
        """Until both let the label name the version, and have it loaded."""
        return seconds_until(lambda: all(has_label(server, version) for server in self.servers), DEADLINE_S)

    def seconds_to_split(self, arms: dict[str, int]) -> float:
        """Until both know the split."""
        return seconds_until(lambda: all(split_of(server) == arms for server in self.servers), DEADLINE_S)


def is_reachable(server: ServerProcess) -> bool:
    """Whether it has its catalog."""
    with server.channel() as channel:
        try:
            request = models_pb2.ListHistoryRequest(model="m", limit=1)
            models_pb2_grpc.ModelServiceStub(channel).ListHistory(request)
        except grpc.RpcError:
            return False
        return True


def set_label(server: ServerProcess, version: int) -> None:
    """Moves ``stable``, by this server."""
    with server.channel() as channel:
        request = models_pb2.SetLabelRequest(model="m", label="stable", version=version, load=True)
        models_pb2_grpc.ModelServiceStub(channel).SetLabel(request)


def has_label(server: ServerProcess, version: int) -> bool:
    """Whether ``stable`` names the version here, and that is loaded."""
    with server.channel() as channel:
        stub = models_pb2_grpc.ModelServiceStub(channel)
        (model,) = stub.ListModels(models_pb2.ListModelsRequest(model="m")).models
        ready = {each.version for each in model.versions if each.state == models_pb2.VERSION_STATE_READY}
        return model.labels["stable"] == version and version in ready


def set_split(server: ServerProcess, arms: dict[str, int]) -> None:
    """Splits the model into arms of the same weight, by this server."""
    with server.channel() as channel:
        request = experiments_pb2.SetSplitRequest(split=experiments_pb2.Split(model="m"))
        for name, version in arms.items():
            request.split.arms.add(name=name, version=version, weight=1.0)
        experiments_pb2_grpc.ExperimentServiceStub(channel).SetSplit(request)


def split_of(server: ServerProcess) -> dict[str, int]:
    """The version of each arm, here."""
    with server.channel() as channel:
        stub = experiments_pb2_grpc.ExperimentServiceStub(channel)
        splits = stub.ListSplits(experiments_pb2.ListSplitsRequest(model="m")).splits
        return {arm.name: arm.version for each in splits for arm in each.arms}


def _make_version(folder: Path, number: int) -> Path:
    """Each scores otherwise."""
    version = folder / f"v{number}"
    version.mkdir()
    rules = {"rules": [{"type": "length", "unit": "characters", "min": 0, "max": number * 10}]}
    (version / "rules.json").write_text(json.dumps(rules))
    write_manifest(version, Manifest(kind="rules", transform="rule"))
    return version
