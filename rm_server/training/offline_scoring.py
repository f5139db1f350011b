"""Scores many texts with a version's folder, without a server: the same encoder and backend, large batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from tqdm import tqdm

from rm_server.backends.interface import Backend, ComputeSettings
from rm_server.backends.items import Batch, Content, EncodedItem
from rm_server.backends.loading import load_backend, load_encoder
from rm_server.errors import NonFiniteScore, RmError
from rm_server.registry.manifest import Manifest

MAX_BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Scored:
    """One text's score, or why it has none."""

    score: float | RmError
    truncated: bool = False


ScoreTexts: TypeAlias = Callable[[Sequence[tuple[Content, Content]]], list[Scored]]
"""Scores (prompt, completion) pairs, in their order."""


def offline_scorer(
    folder: Path, manifest: Manifest, settings: ComputeSettings | None = None, *, shows_progress: bool = False
) -> ScoreTexts:
    """Loads the version in ``folder``. Raises what `load_backend` raises."""
    encoder = load_encoder(folder, manifest)
    backend = load_backend(folder, manifest, settings or ComputeSettings())

    def score(texts: Sequence[tuple[Content, Content]]) -> list[Scored]:
        results: list[Scored | None] = [None] * len(texts)
        items: list[tuple[int, EncodedItem]] = []
        for index, (prompt, completion) in enumerate(texts):
            try:
                items.append((index, encoder.encode(prompt, completion)))
            except RmError as error:
                results[index] = Scored(error)
        with tqdm(total=len(items), desc="scores", unit="text", disable=not shows_progress, leave=False) as bar:
            for batch in _batches(items):
                for (index, item), value in zip(batch, _scores(backend, [item for _, item in batch]), strict=True):
                    results[index] = Scored(value, item.truncated)
                bar.update(len(batch))
        return [result for result in results if result is not None]

    return score


def _batches(items: list[tuple[int, EncodedItem]]) -> Iterator[list[tuple[int, EncodedItem]]]:
    """Of similar length, for backends that pad; the longest first, so that too little memory shows at once."""
    batch: list[tuple[int, EncodedItem]] = []
    for index, item in sorted(items, key=lambda entry: -entry[1].num_tokens):
        if batch and (len(batch) + 1) * batch[0][1].num_tokens > MAX_BATCH_TOKENS:
            yield batch
            batch = []
        batch.append((index, item))
    if batch:
        yield batch


def _scores(backend: Backend, items: Sequence[EncodedItem]) -> list[float | RmError]:
    values = backend.score(Batch.of(items))
    return [
        float(value) if np.isfinite(value) else NonFiniteScore(f"The version gave {value} for a text.")
        for value in values
    ]
