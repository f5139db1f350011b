"""What it costs to compute a version otherwise: the same texts scored before and after, compared. Pure.

Used where a precision or a program changes and the model does not, so every difference is an error of computation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rm_server.training.evaluation import hits_of
from rm_server.training.statistics import (
    Clusters,
    Estimate,
    FloatArray,
    clustered_difference,
    clustered_share,
    spearman,
)


@dataclass(frozen=True, slots=True)
class ScoreChange:
    """After minus before, over the same texts.

    ``mean_difference`` shows a shift of all scores, which changes no rank; ``score_std`` (before) is what the
    differences are to be held against. ``spearman`` None: all scores on one side are the same.
    """

    num_texts: int
    max_difference: float
    mean_absolute_difference: float
    mean_difference: float
    score_std: float
    spearman: float | None


@dataclass(frozen=True, slots=True)
class AccuracyChange:
    """How often scores agree with people before and after, on the same pairs.

    ``difference``: after minus before, with the 95 % interval of paired differences, clustered by prompt.
    ``num_changed``: pairs whose preferred side is another one after.
    """

    num_pairs: int
    num_prompts: int
    before: Estimate
    after: Estimate
    difference: Estimate
    num_changed: int


def score_change(before: FloatArray, after: FloatArray) -> ScoreChange:
    """Both of shape (num_texts,), finite. Raises ValueError where there are none."""
    if not len(before):
        raise ValueError("There are no texts to compare.")
    differences = after - before
    rank_correlation = spearman(before, after) if len(before) > 1 else math.nan
    return ScoreChange(
        num_texts=len(before),
        max_difference=float(np.abs(differences).max()),
        mean_absolute_difference=float(np.abs(differences).mean()),
        mean_difference=float(differences.mean()),
        score_std=float(before.std()),
        spearman=rank_correlation if math.isfinite(rank_correlation) else None,
    )


def accuracy_change(before: FloatArray, after: FloatArray, clusters: Clusters | Sequence[str]) -> AccuracyChange:
    """``before`` and ``after``: margins, chosen minus rejected, shape (num_pairs,); ``clusters`` name the prompts."""
    names = np.asarray(clusters)
    hits_before, hits_after = hits_of(before), hits_of(after)
    return AccuracyChange(
        num_pairs=len(before),
        num_prompts=len(np.unique(names)),
        before=clustered_share(hits_before, names),
        after=clustered_share(hits_after, names),
        difference=clustered_difference(hits_after - hits_before, names),
        num_changed=int(np.count_nonzero(hits_before != hits_after)),
    )
