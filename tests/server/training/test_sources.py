"""Folders and names of the hub; the hub itself is played by a function that writes what it was asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from rm_server.errors import ArtifactUnreadable, InvalidRequest
from rm_server.registry.artifacts import ArtifactStore
from rm_server.training.sources import version_folder

ON_THE_HUB = (
    "README.md",
    "config.json",
    "model.safetensors",
    "modeling_evil.py",
    "onnx/model.onnx",
    "original/consolidated.safetensors",
    "pytorch_model.bin",
    "tokenizer.json",
    "vocab.txt",
)


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """Remembers what was asked of it."""
    asked: list[tuple[str, str | None]] = []

    def snapshot_download(repo: str, *, revision: str | None, local_dir: Path, **patterns: Any) -> str:
        asked.append((repo, revision))
        for name in filter_repo_objects(ON_THE_HUB, **patterns):
            (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
            (local_dir / name).write_text(name)
        return str(local_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_a_folder_is_itself(tmp_path: Path, artifacts: ArtifactStore) -> None:
    with version_folder(str(tmp_path), artifacts) as folder:
        assert folder == tmp_path


def test_what_is_no_folder_is_said(artifacts: ArtifactStore) -> None:
    with pytest.raises(ArtifactUnreadable, match="is no folder; give"), version_folder("nowhere", artifacts):
        pass


def test_only_data_is_fetched_and_nothing_is_left(artifacts: ArtifactStore, hub: list[tuple[str, str | None]]) -> None:
    with version_folder("hf://org/name@v1.0", artifacts) as folder:
        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
        assert folder.is_relative_to(artifacts.root)
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt"}
    assert hub == [("org/name", "v1.0")]
    assert list((artifacts.root / ".incoming").iterdir()) == []


def test_a_revision_may_be_left_out(artifacts: ArtifactStore, hub: list[tuple[str, str | None]]) -> None:
    with version_folder("hf://org/some.name-2", artifacts):
        pass
    assert hub == [("org/some.name-2", None)]


@pytest.mark.parametrize("source", ["hf://", "hf://a/b/c", "hf://org/name@", "hf://org/na me", "hf://../x/y"])
def test_other_names_of_the_hub_are_refused(artifacts: ArtifactStore, hub: Callable[..., Any], source: str) -> None:
    with pytest.raises(InvalidRequest, match="write hf://org/name@revision"), version_folder(source, artifacts):
        pass


def test_a_hub_out_of_reach_is_said(artifacts: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with (
        pytest.raises(ArtifactUnreadable, match="hf://org/name at its main branch cannot be had"),
        version_folder("hf://org/name", artifacts),
    ):
        pass
    assert list((artifacts.root / ".incoming").iterdir()) == []
