"""An ONNX version through a real server: registered, exported, loaded, scored as the version it was made from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
from rm_api.v1 import models_pb2, scoring_pb2
from running_server import RunningServer, error_of, make_version, running

from rm_server import cli
from rm_server.backends.device import device_kind
from rm_server.registry.home import add_version, open_home
from rm_server.registry.manifest import read_manifest, write_manifest
from rm_server.registry.records import ServingProfile
from rm_server.registry.serving_profiles import set_serving_profile

TEXTS = [" ".join(["the line is on a fox"] * (number % 7 + 1)) + f" {number}" for number in range(60)]


def scores(server: RunningServer, selector: str) -> np.ndarray:
    return np.array([result.score.value for result in server.score(selector, *TEXTS).results])


def load(server: RunningServer, selector: str, precision: str = "") -> models_pb2.Version:
    request = models_pb2.LoadVersionRequest(selector=selector, precision=precision)
    version: models_pb2.Version = server.models.LoadVersion(request).version
    return version


def test_an_exported_version_gives_the_same_scores_and_ranks(tmp_path: Path) -> None:
    home = tmp_path / "home"
    folder = make_version(tmp_path / "version", seed=4, family="qwen2", max_tokens=250)
    with running(home) as server:
        server.deploy("m", folder)
        for options in ([], ["--int8", "--min-spearman", "0.5"]):
            assert cli.main(["export", "m@1", "--home", str(home), "--quiet", *options]) == 0
        exported = load(server, "m@2")
        assert (exported.kind, exported.precision) == ("onnx", "fp32")
        assert load(server, "m@3").precision == "int8"
        expected, got, rounded = (scores(server, f"m@{version}") for version in (1, 2, 3))
        assert np.ptp(expected) > 0.1
        np.testing.assert_allclose(got, expected, atol=1e-4)
        gaps = expected[:, None] - expected[None, :]
        assert not ((gaps > 1e-5) & (got[:, None] <= got[None, :])).any()
        assert np.abs(rounded - expected).max() > 1e-4
        options = scoring_pb2.ScoreOptions(bypass_cache=True)
        alone = [server.score("m@3", text, options=options).results[0].score.value for text in TEXTS[:9]]
        assert alone == rounded[:9].tolist(), "int8 must not depend on what shares the batch"


def test_an_onnx_version_has_its_own_precision_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with running(home) as server:
        server.deploy("m", make_version(tmp_path / "version", seed=4, family="bert"))
        assert cli.main(["export", "m@1", "--home", str(home), "--quiet"]) == 0
        status, error = error_of(lambda: load(server, "m@2", "bf16"))
        assert status == grpc.StatusCode.FAILED_PRECONDITION
        assert "computes in fp32 and in nothing else" in error.message
        # What another machine's weights make of the golden examples is noticed at the load, as for any version.
        catalog, artifacts = open_home(home)
        wrong = tmp_path / "wrong"
        wrong.mkdir()
        for path in artifacts.path(catalog.snapshot().versions["m", 2].digest).iterdir():
            (wrong / path.name).write_bytes(path.read_bytes())
        catalog.close()
        manifest = read_manifest(wrong)
        golden = tuple(replace(example, score=example.score + 1) for example in manifest.golden)
        write_manifest(wrong, replace(manifest, golden=golden, label_index=0, truncation="keep_end"))
        registered = server.models.RegisterVersion(models_pb2.RegisterVersionRequest(model="m", path=str(wrong)))
        status, error = error_of(lambda: load(server, f"m@{registered.version.version}"))
        assert "golden examples are off" in error.message


def test_a_load_that_names_no_precision_follows_the_profile_of_this_kind_of_device(tmp_path: Path) -> None:
    home = tmp_path / "home"
    folder = make_version(tmp_path / "version", seed=4, family="qwen2")
    catalog, artifacts = open_home(home)
    add_version(catalog, artifacts, "m", folder, actor="me")
    profile = ServingProfile("m", 1, "cpu: another", "fp16", 1, 1, 4096, 1.0)
    for device, precision in (("cpu: another", "fp16"), (device_kind("cpu"), "bf16")):
        set_serving_profile(catalog, replace(profile, device=device, precision=precision), "me")
    catalog.close()
    with running(home) as server:
        assert load(server, "m@1").precision == "bf16"
        server.models.UnloadVersion(models_pb2.UnloadVersionRequest(selector="m@1"))
        assert load(server, "m@1", "fp32").precision == "fp32"
