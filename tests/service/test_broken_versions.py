"""A broken version is refused by its own reason, and changes nothing: the one before it goes on serving."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rm_api.v1 import errors_pb2, models_pb2
from running_server import RunningServer, error_of, running
from safetensors.torch import load_file, save_file

from rm_server.registry.manifest import FILE_NAME

WEIGHTS = "model.safetensors"
HEAD = "score.weight"


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def without_head(folder: Path, other: Path) -> None:
    change_weights(folder, lambda weights: weights.pop(HEAD))


def with_strange_weights(folder: Path, other: Path) -> None:
    change_weights(folder, lambda weights: weights.update({"lm_head.extra": torch.zeros(2)}))


def with_other_weights(folder: Path, other: Path) -> None:
    shutil.copyfile(other / WEIGHTS, folder / WEIGHTS)


def with_nan(folder: Path, other: Path) -> None:
    change_weights(folder, lambda weights: weights[HEAD].fill_(float("nan")))


def with_zero_head(folder: Path, other: Path) -> None:
    manifest = json.loads((folder / FILE_NAME).read_text()) | {"golden": []}
    (folder / FILE_NAME).write_text(json.dumps(manifest))
    change_weights(folder, lambda weights: weights[HEAD].zero_())


def of_unknown_kind(folder: Path, other: Path) -> None:
    manifest = json.loads((folder / FILE_NAME).read_text()) | {"kind": "oracle"}
    (folder / FILE_NAME).write_text(json.dumps(manifest))


def truncated(folder: Path, other: Path) -> None:
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate((folder / WEIGHTS).stat().st_size // 2)


def without_weights(folder: Path, other: Path) -> None:
    (folder / WEIGHTS).unlink()


def without_manifest(folder: Path, other: Path) -> None:
    (folder / FILE_NAME).unlink()


BROKEN_BEFORE: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "head missing": (without_head, "WEIGHTS_MISMATCH"),
    "strange weights": (with_strange_weights, "WEIGHTS_MISMATCH"),
    "weights swapped": (with_other_weights, "GOLDEN_MISMATCH"),
    "NaN": (with_nan, "NON_FINITE_SCORE"),
    "zero head": (with_zero_head, "CONSTANT_OUTPUT"),
    "unknown kind": (of_unknown_kind, "UNSUPPORTED_ARTIFACT"),
    "truncated file": (truncated, "ARTIFACT_UNREADABLE"),
    "no weights": (without_weights, "ARTIFACT_UNREADABLE"),
    "no manifest": (without_manifest, "ARTIFACT_UNREADABLE"),
}


def try_to_deploy(server: RunningServer, folder: Path) -> errors_pb2.Error:
    """Registers, loads and labels a folder, as a careless operator would; what it failed of."""

    def deploy() -> None:
        request = models_pb2.RegisterVersionRequest(model="helpfulness", path=str(folder))
        version = server.models.RegisterVersion(request).version.version
        server.models.SetLabel(
            models_pb2.SetLabelRequest(
                model="helpfulness", label="stable", version=version, load=True, unload_previous=True
            )
        )

    return error_of(deploy)[1]


@pytest.mark.parametrize("fault", BROKEN_BEFORE)
def test_broken_when_it_is_deployed(server: RunningServer, versions: list[Path], tmp_path: Path, fault: str) -> None:
    damage, reason = BROKEN_BEFORE[fault]
    before = server.score("helpfulness@stable", "a")
    folder = tmp_path / "broken"
    shutil.copytree(versions[2], folder)
    damage(folder, versions[3])

    error = try_to_deploy(server, folder)

    assert errors_pb2.ErrorReason.Name(error.reason) == f"ERROR_REASON_{reason}"
    assert error.message
    after = server.score("helpfulness@stable", "a")
    assert (after.digest, list(after.results)) == (before.digest, list(before.results))


def artifact(server: RunningServer, version: models_pb2.Version) -> Path:
    return server.settings.home / "artifacts" / version.digest


def replace_byte(path: Path) -> None:
    """As a disk or a person may: same length, other content. The store keeps its files read-only."""
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def shorten(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(replace_byte, "DIGEST_MISMATCH"), (shorten, "ARTIFACT_UNREADABLE")],
    ids=["changed byte", "truncated file"],
)
def test_broken_after_it_was_registered(
    tmp_path: Path, versions: list[Path], damage: Callable[[Path], None], reason: str
) -> None:
    with running(tmp_path / "home") as server:
        old, new = server.deploy("helpfulness", *versions[:2])
        server.models.UnloadVersion(models_pb2.UnloadVersionRequest(selector="helpfulness@2"))
        damage(artifact(server, new) / WEIGHTS)

        _, error = error_of(lambda: server.models.LoadVersion(models_pb2.LoadVersionRequest(selector="helpfulness@2")))

        assert errors_pb2.ErrorReason.Name(error.reason) == f"ERROR_REASON_{reason}"
        assert server.score("helpfulness", "a").digest == old.digest
        (model,) = server.models.ListModels(models_pb2.ListModelsRequest()).models
        failed = model.versions[1]
        assert (failed.state, failed.error.reason) == (models_pb2.VERSION_STATE_FAILED, error.reason)
        assert server.metric("rm_loads_total", model="helpfulness", reason=reason.lower()) == 1


def test_a_server_starts_without_the_version_that_broke_meanwhile(tmp_path: Path, versions: list[Path]) -> None:
    home = tmp_path / "home"
    with running(home) as server:
        _, broken = server.deploy("helpfulness", *versions[:2])
    replace_byte(home / "artifacts" / broken.digest / WEIGHTS)
    with running(home) as server:
        assert server.score("helpfulness@stable", "a").version == 1
        (model,) = server.models.ListModels(models_pb2.ListModelsRequest()).models
        states = [models_pb2.VersionState.Name(version.state) for version in model.versions]
        assert states == ["VERSION_STATE_READY", "VERSION_STATE_FAILED"]
        assert model.versions[1].error.reason == errors_pb2.ERROR_REASON_DIGEST_MISMATCH
