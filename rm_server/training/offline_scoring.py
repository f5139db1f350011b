"""Scores many texts with a version's folder, without a server: the same encoder and backend, large batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

from safetensors import safe_open
from tqdm import tqdm

from rm_server.backends.interface import ComputeSettings
from rm_server.backends.items import Batch, Content, EncodedItem
from rm_server.backends.loading import load_backend, load_encoder
from rm_server.errors import NonFiniteScore, RmError, UnsupportedArtifact
from rm_server.registry.manifest import Manifest, Precision

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
    """Loads the version in ``folder``. Raises what `load_backend` raises.

    UnsupportedArtifact for a composite: what it is made of is not in the folder; see `version_scorer`.
    """
    if manifest.kind == "composite":
        raise UnsupportedArtifact(
            f"{folder} is a composite: the versions that it is made of are in a home, not in its folder. Name the home "
            "and the version."
        )
    settings = settings or ComputeSettings()
    encoder = load_encoder(folder, manifest)
    backend = load_backend(folder, manifest, settings)
    # All weights are read for it, so once and not for each text.
    cause = cache(lambda: _cause_of_non_finite(folder, settings.precision))

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
                values = backend.score(Batch.of([item for _, item in batch]))
                for (index, item), value in zip(batch, values.tolist(), strict=True):
                    is_finite = math.isfinite(value)
                    score = value if is_finite else NonFiniteScore(f"{folder} gave {value} for a text. {cause()}")
                    results[index] = Scored(score, item.truncated)
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


def _cause_of_non_finite(folder: Path, precision: Precision) -> str:
    """Why a score is none, as far as the weights tell, and what to do about it."""
    paths, bad = sorted(folder.rglob("*.safetensors")), []
    if not paths:
        return "Look for NaN in its weights."
    for path in paths:
        with safe_open(path, framework="pt") as file:
            bad += [name for name in list(file.keys()) if not bool(file.get_tensor(name).isfinite().all())]
    if bad:
        return (
            f"The weights of {len(bad)} of its tensors are not finite, first those of {bad[0]}: its training diverged, "
            "or it was not saved whole. Take an earlier checkpoint, or train it with a smaller learning rate."
        )
    remedy = "Train it again, with weight decay say." if precision == "fp32" else "Compute it in fp32."
    return f"Its weights are finite, so a number on the way to the score is too large for {precision}. {remedy}"
