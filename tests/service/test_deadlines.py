"""Work whose deadline has passed or whose caller is gone is dropped before it is computed; a full queue says so."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from rm_api.v1 import errors_pb2, experiments_pb2, models_pb2, scoring_pb2
from running_server import Gate, RunningServer, error_of, running, score_request
from waiting import wait_until

from rm_server.config import EngineSettings, TransportSettings

CAPACITY = 10
NUM_LATE = 8


@pytest.fixture
def server(tmp_path: Path, versions: list[Path], gate: Gate) -> Iterator[RunningServer]:
    """One thread computes one batch at a time; at most ten items wait."""
    engine = EngineSettings(workers=0, threads_per_worker=1, batches_in_flight=1, max_queued_items=CAPACITY)
    with running(tmp_path, engine=engine) as server:
        server.deploy("helpfulness", *versions[:2])
        yield server
        gate.open()


def occupy(server: RunningServer, gate: Gate) -> grpc.Future:
    """A call whose batch is being computed until the gate opens."""
    gate.close()
    call = server.scoring.Score.future(score_request("helpfulness@1", "being computed"))
    gate.wait_for_batch()
    return call


def queued(server: RunningServer) -> int:
    return server.models.GetServerStatus(models_pb2.GetServerStatusRequest()).queued_items


def test_a_deadline_that_passes_in_the_queue_drops_the_work(server: RunningServer, gate: Gate) -> None:
    first = occupy(server, gate)
    calls = [
        server.scoring.Score.future(score_request("helpfulness@1", f"late {number}"), timeout=1)
        for number in range(NUM_LATE)
    ]
    for call in calls:
        assert call.exception(timeout=60).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: queued(server) == 0)
    gate.open()
    assert first.result(timeout=60).results[0].HasField("score")
    assert server.score("helpfulness@1", "afterwards").results[0].HasField("score")
    assert gate.batch_sizes == [1], "only the first call was computed behind the gate"
    dropped = sum(
        server.metric("rm_dropped_items_total", model="helpfulness", version="1", reason=reason)
        for reason in ("deadline_exceeded", "cancelled")
    )
    assert dropped == NUM_LATE
    # To the server most of them hang up: their clocks are quicker than its own, by as long as a request is on its way.
    of_it = {"model": "helpfulness", "version": "1", "reason": "deadline_exceeded"}
    assert server.metric("rm_requests_total", method="Score", **of_it) > NUM_LATE / 2
    assert server.metric("rm_items_total", **of_it) > NUM_LATE / 2


def test_a_cancelled_call_is_not_computed(server: RunningServer, gate: Gate) -> None:
    first = occupy(server, gate)
    gone = server.scoring.Score.future(score_request("helpfulness@1", "gone 1", "gone 2"), timeout=60)
    wait_until(lambda: queued(server) == 2)
    gone.cancel()
    wait_until(lambda: queued(server) == 0)
    gate.open()
    first.result(timeout=60)
    assert gate.batch_sizes == [1]
    assert server.metric("rm_dropped_items_total", model="helpfulness", version="1", reason="cancelled") == 2
    of_it = {"model": "helpfulness", "version": "1", "reason": "cancelled"}
    assert server.metric("rm_requests_total", method="Score", **of_it) == 1
    assert server.metric("rm_items_total", **of_it) == 2


def test_a_dropped_stream_takes_its_requests_along(server: RunningServer, gate: Gate) -> None:
    first = occupy(server, gate)
    requests = [
        scoring_pb2.ScoreStreamRequest(id=str(number), request=score_request("helpfulness@1", f"gone {number}"))
        for number in range(5)
    ]
    stream = server.scoring.ScoreStream(iter(requests))
    wait_until(lambda: queued(server) == 5)
    stream.cancel()
    wait_until(lambda: queued(server) == 0)
    gate.open()
    first.result(timeout=60)
    assert gate.batch_sizes == [1]


def test_a_stream_is_read_no_further_than_it_is_answered(tmp_path: Path, versions: list[Path], gate: Gate) -> None:
    engine, transport = EngineSettings(workers=0, threads_per_worker=1), TransportSettings(max_stream_requests=4)
    with running(tmp_path / "home", engine=engine, transport=transport) as server:
        server.deploy("helpfulness", versions[0])
        gate.close()
        requests = [
            scoring_pb2.ScoreStreamRequest(id=str(number), request=score_request("helpfulness@1", f"text {number}"))
            for number in range(20)
        ]
        stream = server.scoring.ScoreStream(iter(requests), timeout=60)
        wait_until(lambda: server.metric("rm_requests_in_flight") == 1 + 4)  # the stream, and four requests on it
        server.score("helpfulness@1")  # a whole call later there are no more
        assert server.metric("rm_requests_in_flight") == 1 + 4
        gate.open()
        assert sorted(int(answer.id) for answer in stream) == list(range(20))


def test_an_id_that_is_under_way_on_the_stream_is_refused(server: RunningServer, gate: Gate) -> None:
    gate.close()
    requests = [
        scoring_pb2.ScoreStreamRequest(id="twice", request=score_request("helpfulness@1", text)) for text in "ab"
    ]
    stream = server.scoring.ScoreStream(iter(requests), timeout=60)
    refused = next(stream)
    assert (refused.id, refused.error.reason) == ("twice", errors_pb2.ERROR_REASON_INVALID_ARGUMENT)
    gate.open()
    assert next(stream).response.results[0].HasField("score")


def test_an_http_caller_that_hangs_up_is_not_computed_for(server: RunningServer, gate: Gate) -> None:
    first = occupy(server, gate)
    caller = http.client.HTTPConnection(server.app.http_address)
    caller.request("POST", "/models/helpfulness@1/get_reward", b'{"query": ["gone 1", "gone 2"]}')
    wait_until(lambda: queued(server) == 2)
    caller.close()
    wait_until(lambda: queued(server) == 0)
    gate.open()
    first.result(timeout=60)
    assert gate.batch_sizes == [1]


def test_a_full_queue_refuses_at_once_with_a_hint(server: RunningServer, gate: Gate) -> None:
    first = occupy(server, gate)
    waiting = server.scoring.Score.future(score_request("helpfulness@1", *map(str, range(CAPACITY))))
    wait_until(lambda: queued(server) == CAPACITY)
    with pytest.raises(grpc.RpcError) as caught:
        server.score("helpfulness@1", "one too many")
    metadata = dict(caught.value.trailing_metadata())
    error = errors_pb2.Error.FromString(metadata["rm-error-bin"])
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.reason == errors_pb2.ERROR_REASON_QUEUE_FULL
    assert error.retry_after_seconds > 0
    assert int(metadata["grpc-retry-pushback-ms"]) == round(error.retry_after_seconds * 1000)
    gate.open()
    assert len(waiting.result(timeout=60).results) == CAPACITY
    first.result(timeout=60)


def test_items_of_several_callers_share_a_batch(server: RunningServer, gate: Gate) -> None:
    first = occupy(server, gate)
    calls = [server.scoring.Score.future(score_request("helpfulness@1", f"caller {n}")) for n in range(4)]
    wait_until(lambda: queued(server) == 4)
    batches_before = server.metric("rm_batch_items_count", model="helpfulness", version="1")
    gate.open()
    assert all(call.result(timeout=60).results[0].HasField("score") for call in [first, *calls])
    assert server.metric("rm_batch_items_count", model="helpfulness", version="1") == batches_before + 2


def test_unload_waits_for_the_work_under_way_and_takes_no_new(server: RunningServer, gate: Gate) -> None:
    first = occupy(server, gate)
    with ThreadPoolExecutor() as pool:
        request = models_pb2.UnloadVersionRequest(selector="helpfulness@1", force=True)
        unloading: Future[Any] = pool.submit(server.models.UnloadVersion, request)
        get = models_pb2.GetVersionRequest(selector="helpfulness@1")
        wait_until(lambda: server.models.GetVersion(get).version.state == models_pb2.VERSION_STATE_DRAINING)
        _, error = error_of(lambda: server.score("helpfulness@1", "new"))
        assert error.reason == errors_pb2.ERROR_REASON_VERSION_NOT_LOADED
        assert not unloading.done()
        gate.open()
        assert unloading.result(timeout=60).version.state == models_pb2.VERSION_STATE_REGISTERED
    assert first.result(timeout=60).results[0].HasField("score")


def test_stopping_finishes_what_is_under_way_and_refuses_the_rest(server: RunningServer, gate: Gate) -> None:
    first = occupy(server, gate)
    stream_requests = iter([scoring_pb2.ScoreStreamRequest(id="1", request=score_request("helpfulness@1", "streamed"))])
    stream = server.scoring.ScoreStream(stream_requests)
    wait_until(lambda: queued(server) == 1)
    ending = server.stopping()
    wait_until(lambda: server.models.GetServerStatus(models_pb2.GetServerStatusRequest()).draining)
    status, error = error_of(lambda: server.score("helpfulness@1", "new"))
    assert (status, error.reason) == (grpc.StatusCode.UNAVAILABLE, errors_pb2.ERROR_REASON_DRAINING)
    for name in ("", "helpfulness", "helpfulness@1"):
        health = server.health.Check(health_pb2.HealthCheckRequest(service=name))
        assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert ending.is_alive()
    gate.open()
    assert first.result(timeout=60).results[0].HasField("score")
    assert next(stream).response.results[0].HasField("score")
    ending.join(timeout=60)
    assert not ending.is_alive()


def test_stopping_cuts_off_what_takes_longer_than_the_drain(tmp_path: Path, versions: list[Path], gate: Gate) -> None:
    engine = EngineSettings(workers=0, threads_per_worker=1)
    server = RunningServer(tmp_path / "home", engine=engine, drain_s=0.1).start()
    server.deploy("helpfulness", versions[0])
    call = occupy(server, gate)
    ending = server.stopping()
    assert call.exception(timeout=60).code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    gate.open()
    ending.join(timeout=60)
    assert not ending.is_alive()


def test_a_lease_keeps_its_version_loaded(server: RunningServer) -> None:
    register = experiments_pb2.RegisterRunRequest(run="exp-1", model="helpfulness")
    lease = server.experiments.RegisterRun(register).lease
    assert (lease.version, len(lease.digest)) == (1, 64)
    server.models.SetLabel(models_pb2.SetLabelRequest(model="helpfulness", label="stable", version=2))
    unload = models_pb2.UnloadVersionRequest(selector="helpfulness@1", force=True)
    _, error = error_of(lambda: server.models.UnloadVersion(unload))
    assert error.reason == errors_pb2.ERROR_REASON_VERSION_IN_USE
    assert "exp-1" in error.message
    assert server.score("helpfulness", "a", run="exp-1").version == 1
    assert server.score("helpfulness", "a", run="exp-2").version == 2
    assert server.score("helpfulness@stable", "a", run="exp-1").version == 2
    renewed = server.experiments.RenewLease(experiments_pb2.RenewLeaseRequest(run="exp-1", model="helpfulness")).lease
    assert renewed.expire_time.seconds >= lease.expire_time.seconds
    server.experiments.EndRun(experiments_pb2.EndRunRequest(run="exp-1"))
    server.models.UnloadVersion(unload)
    _, error = error_of(
        lambda: server.experiments.RenewLease(experiments_pb2.RenewLeaseRequest(run="exp-1", model="helpfulness"))
    )
    assert error.reason == errors_pb2.ERROR_REASON_RUN_NOT_FOUND
    known = server.experiments.ListRuns(experiments_pb2.ListRunsRequest(model="helpfulness")).runs
    assert {run.run: run.HasField("lease_expire_time") for run in known} == {"exp-1": False, "exp-2": True}
