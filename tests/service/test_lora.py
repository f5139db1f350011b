"""Adapters over one base behind the service: memory, scores under load, swaps, and versions that do not fit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import tiny_models
from rm_api.v1 import errors_pb2, models_pb2, scoring_pb2
from running_server import RunningServer, error_of, make_version, running
from tiny_adapters import make_adapter, peft_scores

from rm_server.backends.loading import infer_manifest, load_encoder
from rm_server.config import EngineSettings
from rm_server.registry.manifest import write_manifest
from rm_server.registry.names import is_digest

TEXTS = ("Hello there, how are you?", "2", "Once upon a time there was a fox.", "the end")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.make_checkpoint(tmp_path_factory.mktemp("base"), "llama")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, base: Path) -> list[Path]:
    """Two, each in a folder with its base, as they would be brought to a server."""
    folders = [make_adapter(tmp_path_factory.mktemp(f"adapter-{seed}"), base, seed=seed) for seed in (1, 2)]
    for folder in folders:
        write_manifest(folder, infer_manifest(folder))
    return folders


@pytest.fixture(scope="module")
def expected(adapters: list[Path], base: Path) -> list[list[float]]:
    """What peft scores the texts."""
    encoder = load_encoder(adapters[0], infer_manifest(adapters[0]))
    items = [encoder.encode("Hi", text).ids.tolist() for text in TEXTS]
    return [peft_scores(folder, base, items) for folder in adapters]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    with running(tmp_path / "home") as server:
        yield server


def num_artifacts(server: RunningServer) -> int:
    return sum(is_digest(path.name) for path in (server.settings.home / "artifacts").iterdir())


def scores(server: RunningServer, selector: str) -> list[float]:
    return [result.score.value for result in server.score(selector, *TEXTS).results]


def test_two_adapters_share_a_base_on_disk_and_in_memory(
    server: RunningServer, adapters: list[Path], expected: list[list[float]]
) -> None:
    first, second = server.deploy("helpful", *adapters)
    assert second.memory_bytes < first.memory_bytes / 3
    assert [version.kind for version in (first, second)] == ["lora", "lora"]
    assert num_artifacts(server) == 3
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: scores(server, f"helpful@{number % 2 + 1}"), range(40)))
    for number, answer in enumerate(answers):
        assert answer == pytest.approx(expected[number % 2], abs=1e-5)
    # A swap: the label moves, the first goes, and the second counts the base from now on.
    server.models.SetLabel(models_pb2.SetLabelRequest(model="helpful", label="stable", version=2))
    before = server.metric("rm_version_memory_bytes", model="helpful", version="2")
    server.models.UnloadVersion(models_pb2.UnloadVersionRequest(selector="helpful@1"))
    assert server.metric("rm_version_memory_bytes", model="helpful", version="2") > 3 * before
    assert scores(server, "helpful@stable") == pytest.approx(expected[1], abs=1e-5)


def test_ids_mean_what_the_base_s_tokenizer_says(server: RunningServer, adapters: list[Path], tmp_path: Path) -> None:
    server.deploy("adapter", adapters[0])
    server.deploy("other", make_version(tmp_path / "other", 5, family="bert"))
    server.deploy("alike", make_version(tmp_path / "alike", 5))
    for other, reads_ids in (("other", False), ("alike", True)):
        folder = tmp_path / f"sum-{other}"
        folder.mkdir()
        components = [{"name": name, "version": f"{name}@1"} for name in ("adapter", other)]
        (folder / "composite.json").write_text(json.dumps({"components": components}))
        write_manifest(folder, infer_manifest(folder))
        server.deploy(folder.name, folder)
        request = scoring_pb2.ScoreRequest(model=folder.name)
        request.groups.add().completions.add().token_ids.ids.extend([5, 6, 7])
        (result,) = server.scoring.Score(request).results
        assert result.HasField("score") == reads_ids
        assert reads_ids or "different tokenizers" in result.error.message


def test_a_base_stays_as_long_as_adapters_name_it(server: RunningServer, adapters: list[Path]) -> None:
    server.models.RegisterVersion(models_pb2.RegisterVersionRequest(model="helpful", path=str(adapters[0])))
    delete = models_pb2.DeleteVersionRequest
    status, error = error_of(lambda: server.models.DeleteVersion(delete(model="helpful-base", version=1)))
    assert (status, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, errors_pb2.ERROR_REASON_VERSION_IN_USE)
    assert "is the base of the adapter helpful@1: delete that first" in error.message
    server.models.DeleteVersion(delete(model="helpful", version=1))
    server.models.DeleteVersion(delete(model="helpful-base", version=1))
    assert num_artifacts(server) == 0


def test_a_version_that_does_not_fit_is_refused_with_the_figures(tmp_path: Path, base: Path) -> None:
    write_manifest(base, infer_manifest(base))
    engine = EngineSettings(workers=0, threads_per_worker=1, memory_limit_mb=0.0625)
    with running(tmp_path / "home", engine=engine) as server:
        status, error = error_of(lambda: server.deploy("big", base))
        assert (status, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, errors_pb2.ERROR_REASON_OUT_OF_MEMORY)
        assert "big@1 needs 0.1 MiB in 1 worker, and 0.1 MiB are free of engine.memory_limit_mb" in error.message


def test_a_request_brings_back_what_was_paged_out(tmp_path: Path, versions: list[Path], server: RunningServer) -> None:
    (whole,) = server.deploy("size", versions[0])
    limit_mb = 2.5 * whole.memory_bytes / 1024 / 1024
    engine = EngineSettings(workers=0, threads_per_worker=1, memory_limit_mb=limit_mb)
    with running(tmp_path / "small", engine=engine) as small:
        small.deploy("helpful", versions[0])
        small.deploy("helpful", *versions[1:3], label=None)
        states = {
            version.version: version.state
            for version in small.models.ListModels(models_pb2.ListModelsRequest()).models[0].versions
        }
        assert states[1] == models_pb2.VERSION_STATE_PAGED_OUT
        alone = scores(server, "size@1")
        assert scores(small, "helpful@stable") == pytest.approx(alone, abs=1e-5)
        assert small.metric("rm_pages_total", model="helpful", direction="in") == 1
        assert small.metric("rm_pages_total", model="helpful", direction="out") == 2
