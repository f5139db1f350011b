"""A real server for tests: in this process on a thread of its own, with stubs of the contract over a real socket."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tiny_models
from grpc_health.v1 import health_pb2_grpc
from rm_api.v1 import (
    errors_pb2,
    experiments_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    scoring_pb2,
    scoring_pb2_grpc,
)

from rm_server.app import App
from rm_server.backends.interface import ComputeSettings
from rm_server.backends.items import Batch
from rm_server.backends.loading import infer_manifest, load_backend, load_encoder
from rm_server.config import EngineSettings, ServeSettings
from rm_server.registry.home import open_home
from rm_server.registry.manifest import GoldenExample, Manifest, write_manifest
from rm_server.registry.records import CalibrationRecord

GOLDEN_TEXTS = (("Tell me a story.", "Once upon a time."), ("Hi", "Hello there, how are you?"), ("1 + 1", "2"))
LOCAL_ONLY = (("grpc.enable_http_proxy", 0),)


def make_version(
    folder: Path, seed: int, *, family: str = "qwen2", checkpoint: Mapping[str, Any] | None = None, **manifest: Any
) -> Path:
    """A version's folder as registration leaves it: checkpoint, manifest, golden examples with their scores."""
    tiny_models.make_checkpoint(folder, family, seed=seed, **(checkpoint or {}))
    plain = infer_manifest(folder, **manifest)
    encoder, backend = load_encoder(folder, plain), load_backend(folder, plain, ComputeSettings())
    scores = backend.score(Batch.of([encoder.encode(prompt, completion) for prompt, completion in GOLDEN_TEXTS]))
    assert np.isfinite(scores).all()
    golden = tuple(
        GoldenExample(prompt, completion, float(score))
        for (prompt, completion), score in zip(GOLDEN_TEXTS, scores, strict=True)
    )
    write_manifest(folder, replace(plain, golden=golden))
    return folder


class RunningServer:
    """An `App` on a thread, and a channel to it. ``settings`` are those of ServeSettings."""

    def __init__(self, home: Path, **settings: Any) -> None:
        settings.setdefault("engine", EngineSettings(workers=0, threads_per_worker=1))
        self.settings = ServeSettings(home, listen="127.0.0.1:0", http="127.0.0.1:0", **settings)
        self.app = App(self.settings)
        self.loop = asyncio.new_event_loop()
        self._is_stopped = False
        self._thread = threading.Thread(target=self.loop.run_forever, name="server", daemon=True)

    def start(self) -> RunningServer:
        """Returns when it answers."""
        self._thread.start()
        try:
            self._run(self.app.start())
        except BaseException:
            self._end_loop()
            raise
        self.channel = grpc.insecure_channel(self.app.grpc_address, LOCAL_ONLY)
        self.scoring = scoring_pb2_grpc.ScoringServiceStub(self.channel)
        self.models = models_pb2_grpc.ModelServiceStub(self.channel)
        self.experiments = experiments_pb2_grpc.ExperimentServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)
        return self

    def stop(self) -> None:
        """As SIGTERM does; returns when it has ended. A second call does nothing."""
        if self._is_stopped:
            return
        self._is_stopped = True
        self._run(self.app.stop())
        self.channel.close()
        self._end_loop()

    def stopping(self) -> threading.Thread:
        """Stops it on another thread, so that the test can look meanwhile."""
        thread = threading.Thread(target=self.stop)
        thread.start()
        return thread

    def metric(self, name: str, **labels: str) -> float:
        """A sample of its metrics; 0 where there is none."""
        return self.app.metrics.registry.get_sample_value(name, labels) or 0.0

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout=120)

    def _end_loop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    # --- what most tests do ---

    def deploy(self, model: str, *folders: Path, label: str | None = "stable") -> list[models_pb2.Version]:
        """Registers and loads the folders as the model's next versions; the first gets the label."""
        versions = []
        for folder in folders:
            request = models_pb2.RegisterVersionRequest(model=model, path=str(folder))
            version = self.models.RegisterVersion(request).version
            loaded = self.models.LoadVersion(models_pb2.LoadVersionRequest(selector=f"{model}@{version.version}"))
            versions.append(loaded.version)
        if label is not None:
            self.models.SetLabel(models_pb2.SetLabelRequest(model=model, label=label, version=versions[0].version))
        return versions

    def calibrate(self, model: str, *calibrations: CalibrationRecord) -> None:
        """Gives the model's versions, from the first on, these calibrations."""
        catalog, _ = open_home(self.settings.home)
        for version, calibration in enumerate(calibrations, start=1):
            catalog.set_calibration(model, version, calibration, "ann")
        catalog.close()
        self.models.ListModels(models_pb2.ListModelsRequest())  # looks into the catalog

    def score(self, selector: str, *texts: str, prompt: str = "Hi", **request: Any) -> scoring_pb2.ScoreResponse:
        """Scores texts as completions of one prompt."""
        timeout = request.pop("timeout", 60)
        return self.scoring.Score(score_request(selector, *texts, prompt=prompt, **request), timeout=timeout)


@contextmanager
def running(home: Path, **settings: Any) -> Iterator[RunningServer]:
    """A server for the time of a block."""
    server = RunningServer(home, **settings).start()
    try:
        yield server
    finally:
        server.stop()


def score_request(selector: str, *texts: str, prompt: str = "Hi", **request: Any) -> scoring_pb2.ScoreRequest:
    """One group of texts."""
    message = scoring_pb2.ScoreRequest(model=selector, **request)
    group = message.groups.add()
    group.prompt.text = prompt
    for text in texts:
        group.completions.add().text = text
    return message


def error_of(call: Callable[[], object]) -> tuple[grpc.StatusCode, errors_pb2.Error]:
    """Status and typed error of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    carried = dict(caught.value.trailing_metadata() or ()).get("rm-error-bin")
    assert carried is not None, f"{caught.value.code()} came without a typed error: {caught.value.details()}"
    return caught.value.code(), errors_pb2.Error.FromString(carried)


class Gate:
    """Stands between engine and backend: once closed, a batch that has begun waits until it is opened."""

    def __init__(self) -> None:
        self._is_open = threading.Event()
        self._is_open.set()
        self._entered = threading.Semaphore(0)
        self.batch_sizes: list[int] = []

    def close(self) -> None:
        """From now on batches wait."""
        self.batch_sizes.clear()
        self._is_open.clear()

    def open(self) -> None:
        """Lets all of them pass."""
        self._is_open.set()

    def wait_for_batch(self) -> None:
        """Returns when a batch has arrived since the gate was closed."""
        assert self._entered.acquire(timeout=60)

    def pass_through(self, batch: Batch) -> None:
        if not self._is_open.is_set():
            self.batch_sizes.append(batch.num_items)
            self._entered.release()
            assert self._is_open.wait(60)


def make_rules_version(folder: Path, *rules: Mapping[str, Any]) -> Path:
    """A version's folder of rules."""
    folder.mkdir(parents=True)
    (folder / "rules.json").write_text(json.dumps({"rules": list(rules)}))
    write_manifest(folder, Manifest(kind="rules", transform="rule"))
    return folder
