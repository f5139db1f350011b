"""A broken checkpoint is refused with the error that names what is broken; it is never repaired with random weights."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from rm_server.backends.checkpoint import empty_model, load_model, quiet_transformers, read_config, table_limit
from rm_server.errors import ArtifactUnreadable, OutOfMemory, RmError, UnsupportedArtifact, WeightsMismatch

Weights = dict[str, torch.Tensor]


def change(folder: Path, how: Callable[[Weights], Weights]) -> None:
    path = folder / "model.safetensors"
    save_file(how(load_file(path)), path, metadata={"format": "pt"})


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def swapped(weights: Weights) -> Weights:
    names = ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"]
    return {**weights, names[0]: weights[names[1]], names[1]: weights[names[0]]}


def configure(folder: Path, **settings: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize(
    ("breaks", "error", "says"),
    [
        (
            lambda folder: change(folder, lambda weights: {k: v for k, v in weights.items() if k != "score.weight"}),
            WeightsMismatch,
            r"missing: score\.weight",
        ),
        (
            lambda folder: change(folder, lambda weights: {**weights, "lm_head.weight": torch.ones(3)}),
            WeightsMismatch,
            r"not known to the architecture: lm_head\.weight",
        ),
        (lambda folder: change(folder, swapped), WeightsMismatch, r"q_proj\.weight \(16, 32\), expected \(32, 32\)"),
        (
            lambda folder: configure(folder, num_labels=3),
            WeightsMismatch,
            r"score\.weight \(1, 32\), expected \(3, 32\)",
        ),
        (truncate, ArtifactUnreadable, r"model\.safetensors \(\d+ bytes\) is truncated"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"nothing"),
            ArtifactUnreadable,
            "is truncated or no",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), ArtifactUnreadable, "has no weights: neither"),
        (pickled, UnsupportedArtifact, r"as pickle \(pytorch_model\.bin\), which can run any code"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), UnsupportedArtifact, "is an adapter"),
        (
            lambda folder: configure(folder, quantization_config={"quant_method": "bitsandbytes"}),
            UnsupportedArtifact,
            r"quantized weights \(bitsandbytes\)",
        ),
    ],
)
def test_broken_checkpoints(tmp_path: Path, breaks: Callable[[Path], object], error: type[RmError], says: str) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "llama")
    breaks(folder)
    with pytest.raises(error, match=says):
        load_model(folder, read_config(folder))


def test_shards_are_read_and_missed(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "llama", sharded=True)
    assert len(list(folder.glob("*.safetensors"))) > 1
    model = load_model(folder, read_config(folder))
    expected = tiny_models.make_model("llama").state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())
    next(folder.glob("model-00002-of-*")).unlink()
    with pytest.raises(ArtifactUnreadable, match=r"names model-00002-of-\d+\.safetensors, and that file is not there"):
        load_model(folder, read_config(folder))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_backbone_is_read_narrow_and_all_else_wide(tmp_path: Path, family: str, stored: torch.dtype) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, family)
    own = AutoModelForSequenceClassification.from_pretrained(folder, dtype=stored)
    own.save_pretrained(folder)
    model = load_model(folder, read_config(folder), dtype=torch.float16)
    assert type(model) is type(own)
    for name, weight in model.named_parameters():
        is_wide = not name.startswith(f"{own.base_model_prefix}.") or ".pooler." in name
        assert weight.dtype == (torch.float32 if is_wide else torch.float16), name
        assert torch.equal(weight, own.get_parameter(name).to(weight.dtype)), name
    buffers = dict(load_model(folder, read_config(folder)).named_buffers())
    assert buffers
    for name, buffer in model.named_buffers():
        assert buffer.dtype == buffers[name].dtype, name
        assert torch.equal(buffer, buffers[name]), name


def test_an_index_that_leads_outside_is_refused(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path / "inner", "llama", sharded=True)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps({**content, "weight_map": {"score.weight": "../elsewhere.safetensors"}}))
    with pytest.raises(UnsupportedArtifact, match="only safetensors files beside it"):
        load_model(folder, read_config(folder))
    index.write_text('{"weight_map": []}')
    with pytest.raises(ArtifactUnreadable, match="is no index of weights"):
        load_model(folder, read_config(folder))


def test_remote_code_is_not_run(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "llama")
    (folder / "modeling_evil.py").write_text("raise SystemExit('this must not run')")
    configure(folder, model_type="evil", auto_map={"AutoConfig": "modeling_evil.Evil"})
    with pytest.raises(UnsupportedArtifact, match="code from elsewhere"):
        read_config(folder)


def test_what_is_loaded_does_not_change_with_its_file(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "bert")
    model = load_model(folder, read_config(folder))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(1000))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    os.truncate(path, 100)
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


def test_a_full_memory_is_no_fault_of_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "llama")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr("rm_server.backends.checkpoint.AutoModelForSequenceClassification.from_pretrained", fail)
    with pytest.raises(OutOfMemory, match="Not enough memory for the weights"):
        load_model(folder, read_config(folder))


def test_a_constant_of_older_checkpoints_is_no_weight(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "gpt2")
    change(folder, lambda weights: {**weights, "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)})
    load_model(folder, read_config(folder))


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("opt", {"max_position_embeddings": 64}),  # a table of 66 rows
        ("openai-gpt", {"n_embd": 48, "n_positions": 64}),
        ("roberta", {"max_position_embeddings": 66, "pad_token_id": 1}),
        ("gptj", {"n_positions": 64, "n_embd": 48, "n_head": 4, "n_layer": 1, "rotary_dim": 4}),  # a buffer of sines
        ("ctrl", {"n_positions": 64, "n_embd": 48, "n_head": 4, "n_layer": 1, "dff": 48}),
    ],
)
def test_a_position_table_may_be_no_weight_and_have_rows_that_no_position_reads(
    family: str, settings: dict[str, int]
) -> None:
    config = AutoConfig.for_model(family, **settings)
    assert table_limit(config, empty_model(config).base_model) == 64


def test_of_a_head_that_comes_from_elsewhere_nothing_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "llama")
    change(folder, lambda weights: {name: tensor for name, tensor in weights.items() if name != "score.weight"})
    monkeypatch.setattr(transformers_logging.get_logger(), "propagate", True)
    load_model(folder, read_config(folder), replaced=["score"])
    assert not caplog.records  # transformers would say that the head is new


@pytest.mark.parametrize("shows_bars", [True, False])
def test_transformers_is_quiet_meanwhile_and_as_before_after(shows_bars: bool) -> None:
    verbosity, before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    set_bars = {True: transformers_logging.enable_progress_bar, False: transformers_logging.disable_progress_bar}
    set_bars[shows_bars]()
    try:
        with contextlib.suppress(KeyError), quiet_transformers():
            assert transformers_logging.get_verbosity() == transformers_logging.ERROR
            assert not transformers_logging.is_progress_bar_enabled()
            raise KeyError
        assert transformers_logging.is_progress_bar_enabled() == shows_bars
        assert transformers_logging.get_verbosity() == verbosity
    finally:
        set_bars[before]()
