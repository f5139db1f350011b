"""Folders, the hub's cache as the hub leaves it, and MLflow, which is played by a module of its names."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub
import pytest

from rm_server.errors import ArtifactUnreadable, InvalidRequest
from rm_server.registry.artifacts import ArtifactStore
from rm_server.training.sources import version_source

COMMIT = "3f2a" * 10
IN_THE_CACHE = (
    "config.json",
    "model.safetensors",
    "modeling_evil.py",
    "pytorch_model.bin",
    "tokenizer.json",
    "vocab.txt",
)


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache after a download of org/name: links to blobs, refs that name a commit. The hub is out of reach."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "models--org--name"
    snapshot = repo / "snapshots" / COMMIT
    for folder in (repo / "blobs", repo / "refs", snapshot):
        folder.mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "refs" / "v1.0").write_text(COMMIT)
    for name in IN_THE_CACHE:
        (repo / "blobs" / name).write_text(name)
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    (snapshot / "onnx").mkdir()
    (snapshot / "onnx" / "config.json").write_text("another")
    return tmp_path / "hub"


def leftovers(artifacts: ArtifactStore) -> list[Path]:
    return list((artifacts.root / ".incoming").iterdir())


def test_a_folder_is_itself(tmp_path: Path, artifacts: ArtifactStore) -> None:
    with version_source(str(tmp_path), artifacts) as source:
        assert (source.folder, source.origin) == (tmp_path, "")


def test_what_is_no_folder_is_said(artifacts: ArtifactStore) -> None:
    with pytest.raises(ArtifactUnreadable, match="is no folder; give"), version_source("nowhere", artifacts):
        pass


# --- the hub ---


@pytest.mark.parametrize("source", ["hf://org/name@v1.0", "hf://org/name", f"hf://org/name@{COMMIT}"])
def test_only_data_is_taken_from_the_hub_s_cache_and_the_commit_is_told(
    artifacts: ArtifactStore, hub_cache: Path, source: str
) -> None:
    with version_source(source, artifacts) as found:
        files = {path.relative_to(found.folder).as_posix(): path for path in found.folder.rglob("*")}
        assert found.folder.is_relative_to(artifacts.root)
        assert not any(path.is_symlink() for path in files.values())
        assert files["config.json"].read_text() == "config.json"
    assert set(files) == {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt"}
    assert found.origin == f"hf://org/name@{COMMIT}"
    assert leftovers(artifacts) == []
    assert (hub_cache / "models--org--name" / "blobs" / "config.json").read_text() == "config.json"


def test_a_cache_on_another_disk_is_copied(
    artifacts: ArtifactStore, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    with version_source("hf://org/name", artifacts) as found:
        assert (found.folder / "model.safetensors").read_text() == "model.safetensors"


@pytest.mark.parametrize("source", ["hf://", "hf://a/b/c", "hf://org/name@", "hf://org/na me", "hf://../x/y"])
def test_other_names_of_the_hub_are_refused(artifacts: ArtifactStore, source: str) -> None:
    with pytest.raises(InvalidRequest, match="write hf://org/name@revision"), version_source(source, artifacts):
        pass


@pytest.mark.parametrize(("source", "which"), [("hf://org/other", "its main branch"), ("hf://org/name@v2.0", "v2.0")])
def test_what_is_not_in_the_cache_is_said(artifacts: ArtifactStore, hub_cache: Path, source: str, which: str) -> None:
    with (
        pytest.raises(ArtifactUnreadable, match=rf"at {which} cannot be had from the Hugging Face hub"),
        version_source(source, artifacts),
    ):
        pass
    assert leftovers(artifacts) == []


# --- MLflow ---


class MlflowException(Exception):
    """Of the same name as MLflow's own."""


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, str]]:
    """URI to files: what the played MLflow has."""
    stored: dict[str, dict[str, str]] = {}

    def download_artifacts(*, artifact_uri: str, dst_path: str) -> str:
        if artifact_uri not in stored:
            raise MlflowException(f"{artifact_uri} not found")
        folder = Path(dst_path) / "model-3"
        for name, text in stored[artifact_uri].items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        return str(folder)

    modules: dict[str, Any] = {name: ModuleType(name) for name in ("mlflow", "mlflow.artifacts", "mlflow.exceptions")}
    modules["mlflow.artifacts"].download_artifacts = download_artifacts
    modules["mlflow.exceptions"].MlflowException = MlflowException
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return stored


@pytest.mark.parametrize(
    ("source", "uri"),
    [
        ("mlflow:/helpful/3", "models:/helpful/3"),
        ("mlflow:models:/helpful@champion", "models:/helpful@champion"),
        ("mlflow:runs:/0a1b/reward/model", "runs:/0a1b/reward/model"),
    ],
)
def test_mlflow_s_registry_and_runs(
    artifacts: ArtifactStore, mlflow: dict[str, dict[str, str]], source: str, uri: str
) -> None:
    mlflow[uri] = {"config.json": "{}", "model.safetensors": "x"}
    with version_source(source, artifacts) as found:
        assert sorted(path.name for path in found.folder.iterdir()) == ["config.json", "model.safetensors"]
    assert found.origin == f"mlflow:{uri}"
    assert leftovers(artifacts) == []


def test_a_model_of_mlflow_s_transformers_flavor_gets_its_tokenizer(
    artifacts: ArtifactStore, mlflow: dict[str, dict[str, str]]
) -> None:
    mlflow["models:/helpful/3"] = {
        "MLmodel": "flavors: {}",
        "model/config.json": "{}",
        "components/tokenizer/tokenizer.json": "{}",
    }
    with version_source("mlflow:/helpful/3", artifacts) as found:
        assert sorted(path.name for path in found.folder.iterdir()) == ["config.json", "tokenizer.json"]


def test_what_mlflow_does_not_have_is_said(artifacts: ArtifactStore, mlflow: dict[str, dict[str, str]]) -> None:
    with (
        pytest.raises(ArtifactUnreadable, match=r"models:/helpful/4 cannot be had from MLflow: .* not found"),
        version_source("mlflow:/helpful/4", artifacts),
    ):
        pass
    assert leftovers(artifacts) == []


@pytest.mark.parametrize(
    "source", ["mlflow:", "mlflow:helpful", "mlflow:/", "mlflow:file:/etc/passwd", "mlflow:/a b/1"]
)
def test_other_names_of_mlflow_are_refused(artifacts: ArtifactStore, source: str) -> None:
    with pytest.raises(InvalidRequest, match="write mlflow:/NAME/VERSION"), version_source(source, artifacts):
        pass


def test_without_mlflow_it_says_what_to_install(artifacts: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "mlflow.artifacts", None)
    with pytest.raises(InvalidRequest, match="pip install mlflow"), version_source("mlflow:/helpful/3", artifacts):
        pass
