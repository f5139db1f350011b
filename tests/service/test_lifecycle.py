"""A version's life where something comes in between: a caller who goes, an unload, a failure, work that is given up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from rm_api.v1 import errors_pb2, models_pb2, scoring_pb2
from running_server import Gate, RunningServer, error_of, running, score_request
from waiting import wait_until

from rm_server.config import EngineSettings

NEW = "helpfulness@2"


@pytest.fixture
def server(tmp_path: Path, versions: list[Path], gate: Gate) -> Iterator[RunningServer]:
    """helpfulness@1 serves as `stable`; @2 is registered. Five items may wait."""
    engine = EngineSettings(workers=0, threads_per_worker=1, batches_in_flight=1, max_queued_items=5)
    with running(tmp_path / "home", engine=engine) as server:
        server.deploy("helpfulness", versions[0])
        request = models_pb2.RegisterVersionRequest(model="helpfulness", path=str(versions[1]))
        server.models.RegisterVersion(request)
        yield server
        gate.open()


def state_of(server: RunningServer, selector: str) -> str:
    version = server.models.GetVersion(models_pb2.GetVersionRequest(selector=selector)).version
    return models_pb2.VersionState.Name(version.state).removeprefix("VERSION_STATE_")


def load(server: RunningServer) -> models_pb2.LoadVersionResponse:
    return server.models.LoadVersion(models_pb2.LoadVersionRequest(selector=NEW), timeout=60)


def test_a_load_goes_on_when_its_caller_gives_up(server: RunningServer, gate: Gate) -> None:
    gate.close()
    call = server.models.LoadVersion.future(models_pb2.LoadVersionRequest(selector=NEW))
    gate.wait_for_batch()  # its trial items
    assert state_of(server, NEW) == "LOADING"
    call.cancel()
    assert call.cancelled()
    gate.open()
    wait_until(lambda: state_of(server, NEW) == "READY")
    assert server.score(NEW, "a").version == 2


def test_an_unload_of_a_version_that_is_loading_comes_after_the_load(server: RunningServer, gate: Gate) -> None:
    gate.close()
    loading = server.models.LoadVersion.future(models_pb2.LoadVersionRequest(selector=NEW), timeout=60)
    gate.wait_for_batch()
    unloading = server.models.UnloadVersion.future(models_pb2.UnloadVersionRequest(selector=NEW), timeout=60)
    gate.open()
    assert loading.result().version.version == 2
    unloading.result()
    assert state_of(server, NEW) == "REGISTERED"
    assert server.score("helpfulness", "a").version == 1


def test_a_version_that_failed_is_loaded_when_its_cause_is_gone_and_somebody_asks(server: RunningServer) -> None:
    digest = server.models.GetVersion(models_pb2.GetVersionRequest(selector=NEW)).version.digest
    weights = server.settings.home / "artifacts" / digest / "model.safetensors"
    whole = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(whole[:-1])
    error_of(lambda: load(server))
    assert state_of(server, NEW) == "FAILED"
    assert server.score("helpfulness", "a").version == 1
    weights.write_bytes(whole)
    load(server)
    assert state_of(server, NEW) == "READY"
    assert server.score(NEW, "a").version == 2


def test_calls_and_streams_that_are_given_up_leave_nothing_behind(server: RunningServer, gate: Gate) -> None:
    load(server)
    gate.close()
    first = server.scoring.Score.future(score_request(NEW, "being computed"))
    gate.wait_for_batch()
    calls = [server.scoring.Score.future(score_request(NEW, f"call {number}")) for number in range(2)]
    streams = [
        server.scoring.ScoreStream(
            iter([scoring_pb2.ScoreStreamRequest(id="1", request=score_request(NEW, f"stream {number}"))])
        )
        for number in range(3)
    ]
    wait_until(lambda: server.metric("rm_queue_items") == 5)
    for call in (*calls, *streams):
        call.cancel()
    wait_until(lambda: server.metric("rm_queue_items") == server.metric("rm_queue_tokens") == 0)
    gate.open()
    assert first.result(timeout=60).results[0].HasField("score")
    wait_until(lambda: server.metric("rm_requests_in_flight") == 0)
    # Nobody holds the version: an unload would wait for them.
    server.models.UnloadVersion(models_pb2.UnloadVersionRequest(selector=NEW), timeout=60)
    assert state_of(server, NEW) == "REGISTERED"


def test_each_end_of_a_call_is_counted_under_its_reason(server: RunningServer, gate: Gate) -> None:
    def counted(reason: str) -> float:
        return sum(
            sample.value
            for metric in server.app.metrics.registry.collect()
            for sample in metric.samples
            if sample.name == "rm_requests_total"
            and (sample.labels["method"], sample.labels["reason"]) == ("Score", reason)
        )

    gate.close()
    first = server.scoring.Score.future(score_request("helpfulness", "being computed"))
    gate.wait_for_batch()
    gone = server.scoring.Score.future(score_request("helpfulness", *map(str, range(5))))
    wait_until(lambda: server.metric("rm_queue_items") == 5)
    _, error = error_of(lambda: server.score("helpfulness", "one too many"))
    assert error.reason == errors_pb2.ERROR_REASON_QUEUE_FULL
    error_of(lambda: server.score("helpfulness@7", "a"))
    error_of(lambda: server.score(NEW, "a"))
    gone.cancel()
    wait_until(lambda: counted("cancelled") == 1)
    gate.open()
    first.result(timeout=60)
    reasons = ("ok", "cancelled", "queue_full", "version_not_found", "version_not_loaded")
    assert {reason: counted(reason) for reason in reasons} == dict.fromkeys(reasons, 1.0)


def test_32_threads_ask_and_an_operator_loads_and_unloads(tmp_path: Path, versions: list[Path]) -> None:
    """A call to a version that goes has a score of that version, or the refusal that it is not loaded; nothing else."""
    stop = threading.Event()

    def ask(server: RunningServer, number: int) -> set[str]:
        outcomes = set()
        while not stop.is_set():
            try:
                answer = server.score(NEW, f"{number}")
                assert answer.version == 2
                assert answer.results[0].HasField("score")
                outcomes.add("score")
            except grpc.RpcError as error:
                carried = dict(error.trailing_metadata())["rm-error-bin"]
                outcomes.add(errors_pb2.ErrorReason.Name(errors_pb2.Error.FromString(carried).reason))
        return outcomes

    with running(tmp_path / "home") as server, ThreadPoolExecutor(32) as pool:
        server.deploy("helpfulness", *versions[:2])
        asking = [pool.submit(ask, server, number) for number in range(32)]
        try:
            for _ in range(8):
                load(server)
                server.score(NEW, "now")
                server.models.UnloadVersion(models_pb2.UnloadVersionRequest(selector=NEW), timeout=60)
        finally:
            stop.set()
    outcomes = set().union(*(each.result() for each in asking))
    assert outcomes == {"score", "ERROR_REASON_VERSION_NOT_LOADED"}
