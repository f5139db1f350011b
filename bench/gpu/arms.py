"""What is measured on the device in this process: matrix products, our backend, and transformers by hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bench.gpu.arithmetic import matmul_flops
from bench.workload import Item
from rm_server.backends.interface import ComputeSettings
from rm_server.backends.items import Batch
from rm_server.backends.loading import load_backend, load_encoder
from rm_server.engine.batcher import in_batches
from rm_server.registry.manifest import read_manifest

PADDED_ITEMS = 32
_MAX_ITEMS = 512


def synchronize(device: str) -> None:
    """Waits until the device has done what it was given; the CPU always has."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: str) -> float:
    """How long ``work`` takes, until the device is done."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def matmul_flops_per_s(device: str, size: int, seconds: float) -> float:
    """The rate of bf16 products of two ``size`` × ``size`` matrices, in floating-point operations a second."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)

    def multiply(count: int) -> None:
        for _ in range(count):
            torch.mm(a, b, out=out)

    multiply(1)  # Kernels are chosen and loaded at first use.
    once = min(seconds_of(lambda: multiply(1), device) for _ in range(3))
    count = max(3, int(seconds / once))
    return count * matmul_flops(size, size, size) / seconds_of(lambda: multiply(count), device)


class Packed:
    """Our backend over batches that were tokenised and laid out before: the ceiling of the service on this device."""

    def __init__(self, folder: Path, device: str, items: Sequence[Item], batch_tokens: int) -> None:
        manifest = read_manifest(folder)
        encoder = load_encoder(folder, manifest)
        self.backend = load_backend(folder, manifest, ComputeSettings(device=device, precision="bf16"))
        encoded = [encoder.encode(item.prompt, item.completion) for item in items]
        self._batches = [Batch.of(part) for part in in_batches(encoded, batch_tokens, _MAX_ITEMS)]
        self._num_tokens = sum(int(batch.lengths.sum()) for batch in self._batches)

    def tokens_per_s(self) -> float:
        """All batches once; each ends with its scores on the CPU."""
        start = time.perf_counter()
        for batch in self._batches:
            self.backend.score(batch)
        return self._num_tokens / (time.perf_counter() - start)


class Transformers:
    """What a user of transformers writes: texts in batches of 32 as they come, padded to the longest, in bf16."""

    def __init__(self, folder: Path, device: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16)
        self.model = model.to(device).eval()
        self._device = device

    @torch.inference_mode()
    def score(self, items: Sequence[Item]) -> list[float]:
        """Scores, by batches of 32."""
        scores: list[float] = []
        for start in range(0, len(items), PADDED_ITEMS):
            texts = [item.text for item in items[start : start + PADDED_ITEMS]]
            inputs = self._tokenizer(texts, padding=True, return_tensors="pt").to(self._device)
            scores += self.model(**inputs).logits[:, 0].float().tolist()
        return scores

    def tokens_per_s(self, items: Sequence[Item]) -> float:
        """Tokens that are no padding."""
        return sum(item.num_tokens for item in items) / seconds_of(lambda: self.score(items), self._device)

    @torch.inference_mode()
    def forward_seconds(self, item: Item, count: int) -> list[float]:
        """The bare forward of one item that is tokenised and on the device, until its score is on the CPU."""
        inputs = self._tokenizer([item.text], return_tensors="pt").to(self._device)
        return [seconds_of(lambda: self.model(**inputs).logits.float().cpu(), self._device) for _ in range(count)]
