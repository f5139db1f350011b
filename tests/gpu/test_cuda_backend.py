"""On a CUDA device scores are those of the CPU in fp32, whatever the batch, and a full memory splits it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from fake_versions import outcomes

from rm_server.backends.interface import ComputeSettings
from rm_server.backends.items import Batch, EncodedItem
from rm_server.backends.loading import load_backend
from rm_server.backends.torch import attention_cuda
from rm_server.backends.torch.backend import TorchBackend
from rm_server.backends.torch.forward import PackedForward
from rm_server.config import EngineSettings
from rm_server.engine.engine import Engine
from rm_server.errors import OutOfMemory
from rm_server.metrics import Metrics
from rm_server.registry.manifest import Manifest

pytestmark = pytest.mark.gpu

DEVICE = "cuda:0"
MANIFEST = Manifest(kind="sequence_classification", max_tokens=120)
LENGTHS = (1, 2, 3, 15, 16, 17, 31, 40, 49, 64, 77, 120)
PACKED = ("bert", "roberta", "distilbert", "modernbert", "gpt2", "llama", "qwen2", "mistral")
MIB = 2**20
NARROW_MIB = 128
"""On Hopper cuBLAS takes 32 for each thread that computes. 60 items of `wide_checkpoint` take several times this."""


def make_items(lengths: Sequence[int], seed: int = 0) -> list[EncodedItem]:
    random = np.random.default_rng(seed)
    ids = [random.integers(5, tiny_models.VOCAB_SIZE, length).astype(np.int32) for length in lengths]
    return [EncodedItem(ids=each, num_tokens=len(each)) for each in ids]


def load(folder: Path, device: str = DEVICE, **settings: Any) -> TorchBackend:
    backend = load_backend(folder, MANIFEST, ComputeSettings(device=device, **settings))
    assert isinstance(backend, TorchBackend)
    return backend


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each call of the variable-length kernel: else a loop that serves in its place would pass as well."""
    calls: list[int] = []
    attend: Callable[..., torch.Tensor] = attention_cuda.attend

    def counted(*arguments: Any) -> torch.Tensor:
        calls.append(len(calls))
        return attend(*arguments)

    monkeypatch.setattr(attention_cuda, "attend", counted)
    return calls


@pytest.mark.parametrize("family", PACKED)
def test_scores_in_fp32_are_those_of_the_cpu(tmp_path: Path, family: str) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, family)
    batch = Batch.of(make_items(LENGTHS))
    backend = load(folder)
    assert isinstance(backend.forward, PackedForward)
    np.testing.assert_allclose(backend.score(batch), load(folder, "cpu").score(batch), atol=1e-4, rtol=0)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("family", PACKED)
def test_scores_in_half_precision_are_near_those_of_the_cpu_in_fp32(
    tmp_path: Path, kernel_calls: list[int], family: str, precision: str
) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, family)
    batch = Batch.of(make_items(LENGTHS))
    expected = load(folder, "cpu").score(batch)
    backend = load(folder, precision=precision)
    backend.score(batch)  # The kernel is tried, too.
    kernel_calls.clear()
    came = backend.score(batch)
    assert kernel_calls
    # Of the spread of scores: a neighbour or a position that is wrong moves them by about all of it.
    assert np.abs(came - expected).max() < 0.25 * expected.std()


def test_an_item_has_the_same_score_in_any_batch(tmp_path: Path, kernel_calls: list[int]) -> None:
    backend = load(tiny_models.make_checkpoint(tmp_path, "llama"), precision="bf16")
    items = make_items(LENGTHS)
    alone = np.concatenate([backend.score(Batch.of([item])) for item in items])
    kernel_calls.clear()  # The kernel was tried, too.
    together = backend.score(Batch.of(items[::-1]))[::-1]
    assert kernel_calls
    np.testing.assert_allclose(together, alone, atol=0.05 * alone.std(), rtol=0)


def test_deterministic_scores_have_the_same_bits_in_any_batch(tmp_path: Path) -> None:
    backend = load(tiny_models.make_checkpoint(tmp_path, "llama"), precision="bf16", deterministic=True)
    items = make_items(LENGTHS)
    alone = np.concatenate([backend.score(Batch.of([item])) for item in items])
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(len(items))
        assert (backend.score(Batch.of([items[index] for index in order])) == alone[order]).all()


@pytest.fixture
def narrow_memory() -> Any:
    """Lets this process have so many MiB more than it holds now."""

    def narrow(mib: int) -> None:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(DEVICE).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(DEVICE) + mib * MIB) / total, DEVICE)

    yield narrow
    torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)
    torch.cuda.empty_cache()


def test_a_full_memory_is_named_and_the_backend_goes_on(tmp_path: Path, narrow_memory: Callable[[int], None]) -> None:
    backend = load(wide_checkpoint(tmp_path))
    small, large = Batch.of(make_items([100])), Batch.of(make_items([100] * 60))
    expected = backend.score(small)
    narrow_memory(NARROW_MIB)
    with pytest.raises(OutOfMemory, match="60 items with 6000 tokens"):
        backend.score(large)
    np.testing.assert_allclose(backend.score(small), expected, atol=1e-5, rtol=0)


async def test_a_batch_that_does_not_fit_is_split_until_it_does(
    tmp_path: Path, narrow_memory: Callable[[int], None]
) -> None:
    folder = wide_checkpoint(tmp_path)
    items = make_items([100] * 60)
    expected = load(folder, "cpu").score(Batch.of(items))
    engine = Engine(EngineSettings(device=DEVICE, workers=0, max_batch_tokens=8192), Metrics())
    await engine.start()
    try:
        await engine.load(("m", 1), folder, MANIFEST, "fp32")
        narrow_memory(NARROW_MIB)
        scores = await outcomes(engine.submit(("m", 1), items, use_cache=False))
    finally:
        await engine.stop(drain_s=0)
    assert scores == pytest.approx(expected.tolist(), abs=1e-3)


def wide_checkpoint(folder: Path) -> Path:
    """Each token takes 64 KiB for each intermediate result of a layer's MLP: 6000 tokens take 375 MiB."""
    return tiny_models.make_checkpoint(folder, "llama", intermediate_size=16_384)
