"""Health per model and version, readiness, reflection, watching, and what a scraper sees."""

from __future__ import annotations

import json
import queue
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from prometheus_client.parser import text_string_to_metric_families
from rm_api.v1 import errors_pb2, models_pb2, models_pb2_grpc, scoring_pb2_grpc
from running_server import LOCAL_ONLY, Gate, RunningServer, error_of, make_version, running, score_request

from rm_server.config import EngineSettings
from rm_server.engine import crew
from rm_server.engine.engine import LOAD_BACKEND

Status = health_pb2.HealthCheckResponse


def check(server: RunningServer, name: str) -> int:
    return server.health.Check(health_pb2.HealthCheckRequest(service=name)).status


def get(server: RunningServer, path: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(f"http://{server.app.http_address}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize(
    "name",
    ["", "helpfulness", "helpfulness@1", "helpfulness@2", "helpfulness@stable", "rm_api.v1.ScoringService"],
)
def test_what_can_score_serves(server: RunningServer, name: str) -> None:
    assert check(server, name) == Status.SERVING


@pytest.mark.parametrize("name", ["nonsense", "helpfulness@9", "helpfulness@nope", "a@b@c"])
def test_what_nothing_is_named_is_not_found(server: RunningServer, name: str) -> None:
    status, error = error_of(lambda: check(server, name))
    assert (status, error.reason) == (grpc.StatusCode.NOT_FOUND, errors_pb2.ERROR_REASON_MODEL_NOT_FOUND)


def test_what_is_not_loaded_does_not_serve(server: RunningServer, versions: list[Path]) -> None:
    request = models_pb2.RegisterVersionRequest(model="sleeping", path=str(versions[2]))
    server.models.RegisterVersion(request)
    assert check(server, "sleeping@1") == Status.NOT_SERVING
    assert check(server, "sleeping") == Status.NOT_SERVING
    server.models.LoadVersion(models_pb2.LoadVersionRequest(selector="sleeping@1"))
    assert check(server, "sleeping@1") == Status.SERVING
    assert check(server, "sleeping") == Status.NOT_SERVING, "the bare name has no label stable"
    server.models.SetLabel(models_pb2.SetLabelRequest(model="sleeping", label="stable", version=1))
    assert check(server, "sleeping") == Status.SERVING


@pytest.mark.skipif(not hasattr(health_pb2, "HealthListRequest"), reason="gRPC's health checking is of before 1.85")
def test_health_can_be_listed(server: RunningServer) -> None:
    statuses = server.health.List(health_pb2.HealthListRequest()).statuses
    assert {"", "helpfulness", "helpfulness@1", "helpfulness@stable"} <= set(statuses)
    assert statuses["helpfulness@2"].status == Status.SERVING


class Watch:
    """Reads a stream on a thread, so that a test can wait for what it says."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._messages: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            for message in self._call:
                self._messages.put(message)
        except grpc.RpcError as error:
            self._messages.put(error)

    def next(self) -> Any:
        return self._messages.get(timeout=60)

    def cancel(self) -> None:
        self._call.cancel()


def test_health_can_be_watched(server: RunningServer, versions: list[Path]) -> None:
    watch = Watch(server.health.Watch(health_pb2.HealthCheckRequest(service="watched@1")))
    assert watch.next().status == Status.SERVICE_UNKNOWN
    server.models.RegisterVersion(models_pb2.RegisterVersionRequest(model="watched", path=str(versions[3])))
    assert watch.next().status == Status.NOT_SERVING
    server.models.LoadVersion(models_pb2.LoadVersionRequest(selector="watched@1"))
    assert watch.next().status == Status.SERVING
    server.models.UnloadVersion(models_pb2.UnloadVersionRequest(selector="watched@1"))
    assert watch.next().status == Status.NOT_SERVING
    watch.cancel()


def test_models_can_be_watched(server: RunningServer, versions: list[Path], tmp_path: Path) -> None:
    folders = [make_version(tmp_path / str(seed), seed) for seed in (11, 12)]
    server.deploy("followed", folders[0])
    watch = Watch(server.models.WatchModels(models_pb2.WatchModelsRequest(model="followed")))
    change = models_pb2.WatchModelsResponse
    first = watch.next()
    assert (first.change, first.model.name, dict(first.model.labels)) == (
        change.CHANGE_INITIAL,
        "followed",
        {"stable": 1},
    )
    server.models.RegisterVersion(models_pb2.RegisterVersionRequest(model="followed", path=str(folders[1])))
    registered = watch.next()
    assert (registered.change, len(registered.model.versions)) == (change.CHANGE_VERSIONS, 2)
    server.models.SetLabel(models_pb2.SetLabelRequest(model="followed", label="stable", version=2, load=True))
    seen = []
    while not seen or dict(seen[-1].model.labels) != {"stable": 2}:
        seen.append(watch.next())
    assert {message.change for message in seen} == {change.CHANGE_STATE, change.CHANGE_LABELS}
    assert seen[-1].model.versions[1].state == models_pb2.VERSION_STATE_READY
    assert seen[-1].change == change.CHANGE_LABELS
    watch.cancel()


def test_watching_a_model_that_is_not_there(server: RunningServer) -> None:
    request = models_pb2.WatchModelsRequest(model="nonsense")
    _, error = error_of(lambda: next(server.models.WatchModels(request)))
    assert error.reason == errors_pb2.ERROR_REASON_MODEL_NOT_FOUND


def test_reflection_lists_the_services(server: RunningServer) -> None:
    database = ProtoReflectionDescriptorDatabase(server.channel)
    assert set(database.get_services()) == {
        "rm_api.v1.ScoringService",
        "rm_api.v1.ModelService",
        "rm_api.v1.ExperimentService",
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert database.FindFileContainingSymbol("rm_api.v1.ScoreRequest").package == "rm_api.v1"


def test_the_probes_answer(server: RunningServer) -> None:
    assert get(server, "/healthz") == (200, '{"alive": true}')
    status, body = get(server, "/readyz")
    expected = {"ready": True, "draining": False, "missing": [], "catalog_reachable": True}
    assert (status, json.loads(body)) == (200, expected)


def test_a_server_without_workers_is_not_ready(tmp_path: Path, versions: list[Path]) -> None:
    with running(tmp_path / "home", engine=EngineSettings(workers=1)) as server, pytest.MonkeyPatch.context() as broken:
        broken.setattr(crew, "FIRST_PAUSE_S", 0.01)
        broken.setattr(crew, "LONGEST_PAUSE_S", 0.1)
        server.deploy("helpfulness", versions[0])
        watch = server.health.Watch(health_pb2.HealthCheckRequest(service="helpfulness"), timeout=60)
        assert next(watch).status == Status.SERVING
        with broken.context() as failing:
            failing.setattr(sys, "executable", "/bin/false")
            (worker,) = (child for child in psutil.Process().children() if LOAD_BACKEND in child.cmdline())
            worker.kill()
            assert next(watch).status == Status.NOT_SERVING
            assert get(server, "/readyz")[0] == 503
            assert check(server, "") == Status.NOT_SERVING
        assert next(watch).status == Status.SERVING
        assert get(server, "/readyz")[0] == 200


def test_readyz_says_what_is_missing(tmp_path: Path, versions: list[Path]) -> None:
    home = tmp_path / "home"
    with running(home) as server:
        (version,) = server.deploy("helpfulness", versions[0])
    weights = home / "artifacts" / version.digest / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(b"")
    with running(home) as server:
        assert check(server, "") == Status.NOT_SERVING
        status, body = get(server, "/readyz")
        (missing,) = json.loads(body)["missing"]
        assert status == 503
        assert (missing["model"], missing["version"], missing["state"]) == ("helpfulness", 1, "FAILED")
        assert "model.safetensors" in missing["message"]
        # A good version takes its place, and what is not wanted any more is not missed.
        server.deploy("helpfulness", versions[1], label=None)
        server.models.SetLabel(models_pb2.SetLabelRequest(model="helpfulness", label="stable", version=2))
        server.models.UnloadVersion(models_pb2.UnloadVersionRequest(selector="helpfulness@1"))
        assert get(server, "/readyz")[0] == 200
        assert check(server, "") == Status.SERVING


def test_a_broken_version_that_no_label_names_keeps_nobody_away(tmp_path: Path, versions: list[Path]) -> None:
    home = tmp_path / "home"
    with running(home) as server:
        (canary,) = server.deploy("helpfulness", versions[0], label=None)
        server.deploy("helpfulness", versions[1], label=None)
        server.models.SetLabel(models_pb2.SetLabelRequest(model="helpfulness", label="stable", version=2))
    weights = home / "artifacts" / canary.digest / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(b"")
    with running(home) as server:
        status, body = get(server, "/readyz")
        assert (status, json.loads(body)["missing"][0]["state"]) == (200, "FAILED")
        assert check(server, "") == Status.SERVING
        assert check(server, "helpfulness@1") == Status.NOT_SERVING


def test_while_versions_load_probes_answer_and_scoring_is_sent_elsewhere(
    tmp_path: Path, versions: list[Path], gate: Gate
) -> None:
    with running(tmp_path) as server:
        server.deploy("helpfulness", versions[0])
    gate.close()
    server = RunningServer(tmp_path)
    starting = threading.Thread(target=server.start)
    starting.start()
    gate.wait_for_batch()
    assert get(server, "/healthz")[0] == 200
    status, body = get(server, "/readyz")
    assert (status, json.loads(body)["missing"][0]["state"]) == (503, "LOADING")
    request = urllib.request.Request(f"http://{server.app.http_address}/models/helpfulness/classify", b"{}")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=30)
    assert (caught.value.code, caught.value.headers["Retry-After"]) == (503, "1")
    assert json.load(caught.value)["error"]["reason"] == "DRAINING"
    with grpc.insecure_channel(server.app.grpc_address, LOCAL_ONLY) as channel:
        probe = health_pb2_grpc.HealthStub(channel)
        for service in ("", "helpfulness", "helpfulness@1"):
            answer = probe.Check(health_pb2.HealthCheckRequest(service=service), timeout=30)
            assert answer.status == Status.NOT_SERVING
        scoring, models = scoring_pb2_grpc.ScoringServiceStub(channel), models_pb2_grpc.ModelServiceStub(channel)
        for call in (
            lambda: scoring.Score(score_request("helpfulness", "a"), timeout=30),
            lambda: models.ListModels(models_pb2.ListModelsRequest(), timeout=30),
        ):
            _, error = error_of(call)
            assert (error.reason, error.retry_after_seconds) == (errors_pb2.ERROR_REASON_DRAINING, 1.0)
    gate.open()
    starting.join(timeout=60)
    assert get(server, "/readyz")[0] == 200
    server.stop()


def test_once_ready_a_server_stays_ready_while_it_loads_more(tmp_path: Path, versions: list[Path], gate: Gate) -> None:
    with running(tmp_path) as server:
        server.deploy("helpfulness", versions[0])
        register = models_pb2.RegisterVersionRequest(model="helpfulness", path=str(versions[1]))
        server.models.RegisterVersion(register)
        gate.close()
        loading = server.models.LoadVersion.future(models_pb2.LoadVersionRequest(selector="helpfulness@2"))
        gate.wait_for_batch()
        (model,) = server.models.ListModels(models_pb2.ListModelsRequest()).models
        assert model.versions[1].state == models_pb2.VERSION_STATE_LOADING
        assert check(server, "helpfulness@2") == Status.NOT_SERVING
        assert check(server, "") == Status.SERVING
        gate.open()
        loading.result(timeout=60)
        assert check(server, "helpfulness@2") == Status.SERVING


def samples(server: RunningServer) -> Iterator[tuple[str, dict[str, str], float]]:
    status, text = get(server, "/metrics")
    assert status == 200
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, dict(sample.labels), sample.value


def test_a_scrape_shows_what_was_done(tmp_path: Path, versions: list[Path]) -> None:
    with running(tmp_path) as server:
        (version,) = server.deploy("helpfulness", versions[0])
        for _ in range(3):
            server.score("helpfulness", "a", "b", "", run="exp-17")
        error_of(lambda: server.score("nonsense", "a"))
        found = {(name, tuple(sorted(labels.items()))): value for name, labels, value in samples(server)}

        def value(name: str, **labels: str) -> float:
            return found[name, tuple(sorted(labels.items()))]

        key = {"model": "helpfulness", "version": "1"}
        assert value("rm_requests_total", method="Score", reason="ok", **key) == 3
        assert value("rm_requests_total", method="Score", reason="model_not_found", model="", version="") == 1
        assert value("rm_items_total", reason="ok", **key) == 6
        assert value("rm_items_total", reason="empty_item", **key) == 3
        assert value("rm_tokens_total", **key) > 0
        assert value("rm_request_seconds_count", method="Score", **key) == 3
        assert value("rm_tokenize_seconds_count", **key) == 3
        assert value("rm_cache_hits_total", **key) == 4
        assert value("rm_batch_items_sum", **key) == 2
        assert value("rm_version_loaded_info", digest=version.digest, precision="fp32", **key) == 1
        assert value("rm_version_memory_bytes", **key) == version.memory_bytes > 0
        assert value("rm_load_seconds_count", model="helpfulness") == 1
        assert value("rm_label_moves_total", model="helpfulness") == 1
        assert value("rm_draining") == 0
        assert value("rm_requests_in_flight") == 0
        assert value("process_resident_memory_bytes") > 0
        assert not any("exp-17" in str(labels) for _, labels in found)


def test_the_status_says_what_was_done(tmp_path: Path, versions: list[Path]) -> None:
    with running(tmp_path) as server:
        server.deploy("helpfulness", versions[0])
        server.score("helpfulness", "a", "b")
        status = server.models.GetServerStatus(models_pb2.GetServerStatusRequest())
        assert (status.device, status.workers, status.threads_per_worker) == ("cpu", 0, 1)
        assert (status.scored_items, status.queued_items, status.draining) == (2, 0, False)
        assert status.server_version
        assert status.start_time.seconds > 1_700_000_000
