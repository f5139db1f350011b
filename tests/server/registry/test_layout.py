"""Which files are a version's, and which folders are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rm_server.errors import ArtifactUnreadable, UnsupportedArtifact
from rm_server.registry.layout import version_files

from .conftest import MakeFolder
from .onnx_bytes import onnx_model


def names(folder: Path, kind: str) -> list[str]:
    return [str(path) for path in version_files(folder, kind)]


def test_only_what_decides_the_scores(checkpoint: MakeFolder) -> None:
    folder = checkpoint()
    for other in ("README.md", "evaluation.json", "training_args.bin", "optimizer.pt", "trainer_state.json", "a.py"):
        (folder / other).write_text("x")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("x")
    assert names(folder, "sequence_classification") == [
        "additional_chat_templates/tools.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def make_sharded(folder: Path, shards: list[object]) -> None:
    (folder / "model.safetensors").unlink()
    weight_map = {f"w{number}": shard for number, shard in enumerate(shards)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_are_those_that_the_index_names(checkpoint: MakeFolder) -> None:
    folder = checkpoint()
    make_sharded(folder, ["model-1-of-2.safetensors", "model-2-of-2.safetensors", "model-1-of-2.safetensors"])
    for shard in ("model-1-of-2", "model-2-of-2", "not-named"):
        (folder / f"{shard}.safetensors").write_text("x")
    assert names(folder, "sequence_classification") == [
        "config.json",
        "model-1-of-2.safetensors",
        "model-2-of-2.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ]


def test_a_missing_shard_is_named(checkpoint: MakeFolder) -> None:
    folder = checkpoint()
    make_sharded(folder, ["model-1-of-1.safetensors"])
    with pytest.raises(ArtifactUnreadable, match=r"model-1-of-1\.safetensors is missing"):
        names(folder, "sequence_classification")


@pytest.mark.parametrize("shard", ["../../etc/passwd.safetensors", "/etc/passwd", "model.bin", 7, None])
def test_an_index_names_safetensors_beside_it_and_nothing_else(checkpoint: MakeFolder, shard: object) -> None:
    folder = checkpoint()
    make_sharded(folder, [shard])
    with pytest.raises((UnsupportedArtifact, ArtifactUnreadable), match="index"):
        names(folder, "sequence_classification")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}'])
def test_a_broken_index_is_named(checkpoint: MakeFolder, text: str) -> None:
    folder = checkpoint()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ArtifactUnreadable, match=r"index\.json (is no index|names no file)"):
        names(folder, "sequence_classification")


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "model.pt", "model.pkl", "last.ckpt", "model.pth"])
def test_pickled_weights_are_refused_by_name_with_the_way_out(checkpoint: MakeFolder, pickle: str) -> None:
    folder = checkpoint()
    (folder / "model.safetensors").rename(folder / pickle)
    with pytest.raises(UnsupportedArtifact, match=rf"{pickle}.*save_pretrained"):
        names(folder, "sequence_classification")


def test_a_pickled_adapter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_text("x")
    with pytest.raises(UnsupportedArtifact, match=r"adapter_model\.bin"):
        names(tmp_path, "lora")


def test_missing_weights_and_missing_config_are_named(checkpoint: MakeFolder) -> None:
    folder = checkpoint()
    (folder / "model.safetensors").unlink()
    with pytest.raises(ArtifactUnreadable, match=r"neither model\.safetensors nor"):
        names(folder, "sequence_classification")
    (folder / "model.safetensors").touch()
    (folder / "config.json").unlink()
    with pytest.raises(ArtifactUnreadable, match=r"config\.json is missing"):
        names(folder, "sequence_classification")


def test_an_onnx_file_without_a_manifest_is_told_what_it_wants(checkpoint: MakeFolder) -> None:
    folder = checkpoint()
    (folder / "model.safetensors").rename(folder / "model.onnx")
    with pytest.raises(ArtifactUnreadable, match=r'its model\.onnx, give it a reward_model\.json with "kind": "onnx"'):
        names(folder, "sequence_classification")


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactUnreadable, match="is not a folder"):
        names(tmp_path / "nowhere", "rules")


def test_a_link_out_of_the_folder_is_refused(checkpoint: MakeFolder, tmp_path: Path) -> None:
    folder = checkpoint()
    (tmp_path / "secret").write_text("{}")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(UnsupportedArtifact, match=r"outside of the folder.*cp -rL"):
        names(folder, "sequence_classification")


def test_a_link_within_the_folder_is_followed(checkpoint: MakeFolder) -> None:
    folder = checkpoint()
    (folder / "blobs").mkdir()
    (folder / "model.safetensors").rename(folder / "blobs" / "abc")
    (folder / "model.safetensors").symlink_to("blobs/abc")
    assert "model.safetensors" in names(folder, "sequence_classification")


def test_an_adapter_names_its_base(tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ArtifactUnreadable, match=r"base\.json is missing"):
        names(tmp_path, "lora")
    (tmp_path / "base.json").write_text("{}")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    assert names(tmp_path, "lora") == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "base.json",
        "tokenizer.json",
    ]


def test_weights_beside_an_onnx_file_belong_to_it(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx_model("model.onnx_data"))
    for name in ("config.json", "model.onnx_data", "model.onnx.data", "other.onnx", "vocab.txt"):
        (tmp_path / name).write_text("x")
    assert names(tmp_path, "onnx") == ["config.json", "model.onnx", "model.onnx_data", "vocab.txt"]
    (tmp_path / "model.onnx_data").unlink()
    with pytest.raises(ArtifactUnreadable, match=r"model\.onnx_data is missing"):
        names(tmp_path, "onnx")


def test_an_onnx_files_weights_are_no_link_to_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "version"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(onnx_model("weights"))
    (folder / "config.json").write_text("{}")
    (folder / "weights").symlink_to(tmp_path / "secret")
    with pytest.raises(UnsupportedArtifact, match="outside of the folder"):
        names(folder, "onnx")
