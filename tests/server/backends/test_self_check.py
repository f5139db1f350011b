"""What the trials at load say: a way that fails leaves its place to the next, and want of memory is no such failure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from rm_server.backends.interface import ComputeSettings
from rm_server.backends.items import Batch, EncodedItem
from rm_server.backends.loading import load_backend
from rm_server.backends.torch.backend import TorchBackend
from rm_server.backends.torch.forward import PackedForward
from rm_server.errors import OutOfMemory, UnsupportedArtifact
from rm_server.registry.manifest import Manifest

MANIFEST = Manifest(kind="sequence_classification", max_tokens=120)
FIRST, NAN = torch.tensor([0]), float("nan")


def fail_packed_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any) -> torch.Tensor:
        raise error

    monkeypatch.setattr(PackedForward, "forward", fail)


def test_a_way_that_fails_leaves_its_place_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_packed_with(monkeypatch, RuntimeError("The size of tensor a must match the size of tensor b"))
    backend = load_backend(tiny_models.make_checkpoint(tmp_path, "llama"), MANIFEST, ComputeSettings())
    assert isinstance(backend, TorchBackend)
    assert backend.forward.name == "padded"


def test_a_way_that_gives_no_number_leaves_its_place_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = PackedForward.forward
    monkeypatch.setattr(PackedForward, "forward", lambda self, batch: forward(self, batch).index_fill_(0, FIRST, NAN))
    backend = load_backend(tiny_models.make_checkpoint(tmp_path, "llama"), MANIFEST, ComputeSettings())
    assert isinstance(backend, TorchBackend)
    assert backend.forward.name == "padded"


def test_a_load_that_lacks_memory_fails_and_is_not_served_more_slowly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_packed_with(monkeypatch, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    with pytest.raises(OutOfMemory, match=r"does not fit into the memory of cpu: CUDA out of memory"):
        load_backend(tiny_models.make_checkpoint(tmp_path, "llama"), MANIFEST, ComputeSettings())


@pytest.mark.parametrize(("max_tokens", "window"), [(120, 512), (24, 512), (120, 40)])
def test_a_decoder_that_looks_ahead_shares_no_prompt_however_short_its_items(
    tmp_path: Path, max_tokens: int, window: int
) -> None:
    """Its head reads the last token, as those of causal models do."""
    folder = tiny_models.make_checkpoint(
        tmp_path, "gemma3", use_bidirectional_attention=True, sliding_window=window, num_hidden_layers=6
    )
    backend = load_backend(folder, replace(MANIFEST, max_tokens=max_tokens), ComputeSettings())
    ids = np.random.default_rng(0).integers(5, tiny_models.VOCAB_SIZE, (6, 20)).astype(np.int32)
    ids[:, :14] = ids[0, :14]
    items = [EncodedItem(row, 20) for row in ids]
    alone = [float(backend.score(Batch.of([item]))[0]) for item in items]
    assert backend.score(Batch.of(items)) == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("prepack", [True, False])
def test_a_model_that_cannot_be_computed_in_half_precision_is_refused_in_its_own_words(
    tmp_path: Path, prepack: bool
) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "gpt2", model_type="openai-gpt")
    assert load_backend(folder, MANIFEST, ComputeSettings(prepack=prepack))
    with pytest.raises(UnsupportedArtifact, match=r"computed in bf16 on cpu: .* same dtype.* Load it in fp32"):
        load_backend(folder, MANIFEST, ComputeSettings(precision="bf16", prepack=prepack))


def test_texts_that_attend_to_chosen_tokens_only_are_not_padded(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "llama", model_type="doge", keep_window_size=60)
    backend = load_backend(folder, MANIFEST, ComputeSettings())
    assert isinstance(backend, TorchBackend)
    assert backend.forward.name == "padded"
    random = np.random.default_rng(0)
    items = [
        EncodedItem(random.integers(5, tiny_models.VOCAB_SIZE, length).astype(np.int32), length)
        for length in (120, 70, 90, 65, 30, 60)
    ]
    alone = [float(backend.score(Batch.of([item]))[0]) for item in items]
    assert backend.score(Batch.of(items)) == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize(("model_type", "pad_id"), [("gemma2", -1), ("bloom", tiny_models.VOCAB_SIZE), ("bloom", None)])
def test_a_pad_id_that_is_no_token_is_no_reason_to_compute_one_by_one(
    tmp_path: Path, model_type: str, pad_id: int | None
) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "gemma2", model_type=model_type)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "pad_token_id": pad_id}))
    backend = load_backend(folder, MANIFEST, ComputeSettings())
    assert isinstance(backend, TorchBackend)
    assert backend.forward.name == "padded"
