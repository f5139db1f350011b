"""A kept adapter, registered, scores through the engine's backend as the merged model of the same training does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from transformers import AutoModel, BertForMaskedLM

from rm_server.backends.interface import ComputeSettings
from rm_server.backends.items import Batch
from rm_server.backends.loading import load_backend, load_encoder
from rm_server.errors import ArtifactUnreadable, InvalidRequest, VersionNotFound
from rm_server.registry.home import open_home
from rm_server.registry.lora import read_base_name
from rm_server.registry.manifest import read_manifest
from rm_server.training.registration import register_folder
from rm_server.training.settings import TrainSettings
from rm_server.training.trainer import train

WritePairs = Callable[..., Path]
TEXTS = (" a good cat", " a bad dog", " the sun is red and old", " new")


def scores(folder: Path) -> np.ndarray:
    manifest = read_manifest(folder)
    encoder = load_encoder(folder, manifest)
    batch = Batch.of([encoder.encode("Prompt 1:", text) for text in TEXTS])
    return load_backend(folder, manifest, ComputeSettings(threads=1)).score(batch)


def train_two_steps(data: Path, out: Path, base: Path, *, keep_adapter: bool, lora_rank: int = 4) -> Path:
    settings = TrainSettings(
        str(base), learning_rate=3e-2, held_out_share=0.2, device="cpu", lora_rank=lora_rank, keep_adapter=keep_adapter
    )
    trained = train(data, out, settings, shows_progress=False)
    assert trained.record["num_steps"] == 2
    return trained.folder


def strip_nothing(base: Path) -> None:
    pass


def strip_head(base: Path) -> None:
    AutoModel.from_pretrained(base).save_pretrained(base)


def strip_head_and_pooler(base: Path) -> None:
    BertForMaskedLM.from_pretrained(base).save_pretrained(base)


@pytest.mark.parametrize(
    ("family", "strip", "is_copied"),
    [("llama", strip_nothing, True), ("qwen2", strip_head, True), ("bert", strip_head_and_pooler, False)],
    ids=["reward model", "bare backbone", "masked language model without pooler"],
)
def test_a_kept_adapter_scores_as_the_merged_model(
    tmp_path: Path, write_pairs: WritePairs, family: str, strip: Callable[[Path], None], is_copied: bool
) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", family)
    strip(base)
    data = write_pairs(40)
    merged = train_two_steps(data, tmp_path / "merged", base, keep_adapter=False)
    kept = train_two_steps(data, tmp_path / "kept", base, keep_adapter=True)
    done = register_folder(tmp_path / "home", "helpful", str(kept), actor="ann")
    assert (done.record.kind, done.record.version) == ("lora", 1)
    _, artifacts = open_home(tmp_path / "home")
    registered, expected = scores(artifacts.path(done.record.digest)), scores(merged)
    assert np.ptp(expected) > 1e-3
    assert registered == pytest.approx(expected, abs=1e-4)
    same_file = (kept / "base/model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    assert same_file == is_copied


def test_base_names_a_version_or_a_folder(tmp_path: Path, write_pairs: WritePairs) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "llama")
    adapter = train_two_steps(write_pairs(40), tmp_path / "adapter", base, keep_adapter=True)
    expected = scores(adapter)
    shutil.rmtree(adapter / "base")
    (adapter / "reward_model.json").unlink()
    home = tmp_path / "home"
    with pytest.raises(ArtifactUnreadable, match=rf"base_model_name_or_path '{base}'.*--base"):
        register_folder(home, "helpful", str(adapter), actor="ann")
    register_folder(home, "other-base", str(base), actor="ann")
    with pytest.raises(VersionNotFound, match="adapter's base"):
        register_folder(home, "helpful", str(adapter), actor="ann", base="other-base@7")
    by_folder = register_folder(home, "helpful", str(adapter), actor="ann", base=str(base)).record
    by_version = register_folder(home, "second", str(adapter), actor="ann", base="helpful-base@1").record
    _, artifacts = open_home(home)
    for record in (by_folder, by_version):
        folder = artifacts.path(record.digest)
        name = read_base_name(folder)
        assert name.version == "helpful-base@1"
        assert (folder / "split.json").read_bytes() == (adapter / "split.json").read_bytes()
        assert artifacts.path(name.digest).is_dir()
        assert scores(folder) == pytest.approx(expected, abs=1e-5)
    assert by_folder.digest == by_version.digest


def test_paths_may_be_relative(tmp_path: Path, write_pairs: WritePairs, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "llama")
    adapter = train_two_steps(write_pairs(40), tmp_path / "adapter", base, keep_adapter=True)
    monkeypatch.chdir(tmp_path)
    assert register_folder(Path("home"), "helpful", "adapter", actor="ann").created
    shutil.rmtree(adapter / "base")
    done = register_folder(Path("home"), "second", "adapter", actor="ann", base="helpful-base@1")
    assert done.created


def test_what_makes_no_sense_is_refused(tmp_path: Path, write_pairs: WritePairs) -> None:
    base = tiny_models.make_checkpoint(tmp_path / "base", "llama")
    with pytest.raises(InvalidRequest, match="--keep-adapter needs --lora-rank"):
        train_two_steps(write_pairs(40), tmp_path / "v1", base, keep_adapter=True, lora_rank=0)
    with pytest.raises(InvalidRequest, match="is for an adapter"):
        register_folder(tmp_path / "home", "m", str(base), actor="ann", base="b@1")
    (base / "adapter_config.json").write_text("{}")
    (base / "base").mkdir()
    with pytest.raises(InvalidRequest, match="says another"):
        register_folder(tmp_path / "home", "m", str(base), actor="ann", base="b@1")
