"""What the scripts of the peers compute with: transformers by hand, or our own backend. Runs in their environments."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

MAX_PADDED_ITEMS = 32


def scorer() -> Callable[[list[str]], list[float]]:
    """As BENCH_BACKEND, BENCH_FOLDER, BENCH_PRECISION and OMP_NUM_THREADS say."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    folder, precision = Path(os.environ["BENCH_FOLDER"]), os.environ["BENCH_PRECISION"]
    if os.environ["BENCH_BACKEND"] == "packed":
        return _packed(folder, precision)
    from bench.offline import transformers_scorer

    score = transformers_scorer(folder, precision)

    def in_parts(texts: list[str]) -> list[float]:
        starts = range(0, len(texts), MAX_PADDED_ITEMS)
        return [value for start in starts for value in score(texts[start : start + MAX_PADDED_ITEMS])]

    return in_parts


def _packed(folder: Path, precision: str) -> Callable[[list[str]], list[float]]:
    from rm_server.backends.interface import ComputeSettings
    from rm_server.backends.items import Batch
    from rm_server.backends.loading import load_backend, load_encoder
    from rm_server.registry.manifest import read_manifest

    manifest = read_manifest(folder)
    encoder = load_encoder(folder, manifest)
    backend = load_backend(folder, manifest, ComputeSettings(precision=precision))  # type: ignore[arg-type]

    def score(texts: list[str]) -> list[float]:
        scores: list[float] = backend.score(Batch.of([encoder.encode("", text) for text in texts])).tolist()
        return scores

    return score
