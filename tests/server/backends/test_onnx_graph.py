"""Every family that exports gives its own scores over ragged lengths; the others are refused by name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import pytest
import tiny_models
import torch
from tiny_models import PAD_ID

from rm_server.backends.checkpoint import load_model, read_config
from rm_server.backends.interface import ComputeSettings
from rm_server.backends.items import Batch, EncodedItem
from rm_server.backends.loading import load_backend
from rm_server.backends.onnx.graph import export_graph, quantize_graph, strip
from rm_server.backends.torch.forward import OneByOneForward
from rm_server.backends.torch.self_check import check_batch
from rm_server.errors import UnsupportedArtifact
from rm_server.registry.manifest import Manifest
from rm_server.registry.onnx_file import read_onnx_file

MANIFEST = Manifest("onnx", max_tokens=120)
REFUSED = ("llama_dynamic_rope", "phi3_longrope")
# One of each way to pool, to place tokens and to multiply; the others take seconds each: RM_ALL_FAMILIES=1 runs them.
SOME = ("bert", "roberta", "modernbert_mean", "deberta_v2", "gpt2", "qwen2_sliding")
EXPORTED = [
    family
    for family in tiny_models.FAMILIES
    if family not in REFUSED and (family in SOME or os.environ.get("RM_ALL_FAMILIES"))
]

Exported: TypeAlias = Callable[[str], tuple[Path, Batch, np.ndarray]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A family's folder, which is not to be changed, and what `export` gives: an export takes seconds."""

    @cache
    def of(family: str) -> tuple[Path, Batch, np.ndarray]:
        folder = tmp_path_factory.mktemp(family)
        return folder, *export(folder, family)

    return of


def export(folder: Path, family: str) -> tuple[Batch, np.ndarray]:
    """Writes the family's graph; items of many lengths, and the model's own scores of them, one at a time."""
    checkpoint = tiny_models.make_checkpoint(folder / "checkpoint", family, seed=5)
    model = load_model(checkpoint, read_config(checkpoint))
    items = check_batch(model, MANIFEST.max_tokens)
    random = np.random.default_rng(0)
    more = [random.integers(5, tiny_models.VOCAB_SIZE, length).astype(np.int32) for length in (1, 2, 3, 70, 119)]
    batch = Batch(
        ids=np.concatenate([items.ids, *more]),
        lengths=np.concatenate([items.lengths, np.array([len(ids) for ids in more], np.int32)]),
        completion_starts=np.zeros(items.num_items + len(more), np.int32),
    )
    expected = OneByOneForward(model, torch.device("cpu")).logits(batch)[:, 0].double().numpy()
    export_graph(model, folder / "model.onnx")
    (folder / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    return batch, expected


@pytest.mark.parametrize("family", EXPORTED)
def test_scores_are_transformers_own(exported: Exported, family: str) -> None:
    folder, batch, expected = exported(family)
    assert expected.std() > 0.01, "scores that are all alike would agree with anything"
    for deterministic in (False, True):
        backend = load_backend(folder, MANIFEST, ComputeSettings(threads=1, deterministic=deterministic))
        backend.max_padded_tokens *= 8  # so that items of very different lengths meet
        np.testing.assert_allclose(backend.score(batch), expected, atol=1e-5)


@pytest.mark.parametrize("family", REFUSED)
def test_a_length_dependent_architecture_is_refused_by_name(tmp_path: Path, family: str) -> None:
    with pytest.raises(UnsupportedArtifact, match=r"rope_type '(dynamic|longrope)' is not exported"):
        export(tmp_path, family)


def test_so_is_one_whose_layers_of_one_kind_are_length_dependent(tmp_path: Path) -> None:
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    rotary = {"full_attention": dynamic, "sliding_attention": plain}
    checkpoint = tiny_models.make_checkpoint(tmp_path / "checkpoint", "gemma3", rope_parameters=rotary)
    with pytest.raises(UnsupportedArtifact, match="rope_type 'dynamic' is not exported"):
        export_graph(load_model(checkpoint, read_config(checkpoint)), tmp_path / "model.onnx")


def test_an_item_may_hold_the_pad_id(exported: Exported) -> None:
    folder, *_ = exported("gpt2")
    backend = load_backend(folder, MANIFEST, ComputeSettings(threads=1))
    ends = [np.array([7, 9, 8, end], np.int32) for end in (PAD_ID, 11)]
    scores = backend.score(Batch.of([EncodedItem(ids, len(ids)) for ids in (*ends, ends[0][:3])]))
    assert len({round(score, 4) for score in scores.tolist()}) == 3


def test_int8_touches_the_backbone_and_not_the_head(tmp_path: Path, exported: Exported) -> None:
    folder, batch, expected = exported("gpt2")
    shutil.copy(folder / "config.json", tmp_path)
    quantized = tmp_path / "model.onnx"
    assert quantize_graph(folder / "model.onnx", quantized) == 2 * 4  # layers, products in each
    head = [node for node in onnx.load(quantized).graph.node if any("score.weight" in name for name in node.input)]
    assert [node.op_type for node in head] == ["MatMul"]
    backend = load_backend(tmp_path, replace(MANIFEST, precision="int8"), ComputeSettings(threads=1))
    assert backend.precision == "int8"
    scores = backend.score(batch)
    assert 0 < np.abs(scores - expected).max() < 0.3 * expected.std()
    # Activations are scaled by what shares the run, so every item must have one of its own.
    shuffled = np.random.default_rng(1).permutation(batch.num_items)
    starts = np.cumsum(batch.lengths) - batch.lengths
    items = [batch.ids[start : start + length] for start, length in zip(starts, batch.lengths, strict=True)]
    again = backend.score(Batch.of([EncodedItem(items[index], len(items[index])) for index in shuffled]))
    assert again.tolist() == scores[shuffled].tolist()


def test_a_stripped_graph_names_no_folder_and_is_the_same_file_again(tmp_path: Path, exported: Exported) -> None:
    export(tmp_path, "bert")
    contents = []
    for folder in (tmp_path, exported("bert")[0]):
        assert b"site-packages" in (folder / "model.onnx").read_bytes()
        stripped = tmp_path / "stripped.onnx"
        strip(folder / "model.onnx", stripped)
        contents.append(stripped.read_bytes())
        assert b"site-packages" not in contents[-1]
        assert not read_onnx_file(stripped).external
    assert contents[0] == contents[1]


def test_large_weights_lie_beside_the_file(tmp_path: Path, exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rm_server.backends.onnx.graph.MAX_FILE_BYTES", 1000)
    folder, batch, expected = exported("bert")
    shutil.copy(folder / "config.json", tmp_path)
    path = tmp_path / "model.onnx"
    strip(folder / "model.onnx", path)
    assert read_onnx_file(path).external == {"model.onnx.data"}
    backend = load_backend(tmp_path, MANIFEST, ComputeSettings(threads=1))
    np.testing.assert_allclose(backend.score(batch), expected, atol=1e-5)
    assert backend.memory_bytes == sum((tmp_path / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
