"""The report on a shadow: how it agrees with a version, where they are furthest apart, and what to draw. One JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime

import numpy as np

from rm_server.registry.catalog import Catalog
from rm_server.registry.records import Shadow
from rm_server.registry.shadows import ShadowPair, pairs_of
from rm_server.scoring.comparison.agreement import Float64Array, agreement, worst_disagreements
from rm_server.scoring.comparison.plain_report import Report, without_undefined

MAX_WORST = 20
MAX_RUNS = 50
MAX_POINTS = 1500
NUM_QUANTILES = 101
NUM_BINS = 40


def read_report(catalog: Catalog, model: str, shadow_version: int, version: int | None = None) -> Report:
    """Compares a shadow with a version (None: the one that callers got most often) by the pairs in the catalog.

    Without pairs ``num_pairs`` is 0, and nothing else is said. Raises ModelNotFound, VersionNotFound.
    """
    pairs, counts = pairs_of(catalog, model, shadow_version, version)
    shadow = catalog.snapshot().shadows.get((model, shadow_version))
    if version is None and pairs:
        version = pairs[0].version
    return report(model, shadow_version, version, pairs, counts, shadow)


def report(
    model: str,
    shadow_version: int,
    version: int | None,
    pairs: Sequence[ShadowPair],
    counts: Counter[int],
    shadow: Shadow | None,
) -> Report:
    """``pairs``: all of the shadow with ``version``. ``counts``: how many pairs there are with each version."""
    content: Report = {
        "model": model,
        "shadow_version": shadow_version,
        "version": version,
        "create_time": datetime.now(UTC).isoformat(timespec="seconds"),
        "share": None if shadow is None else shadow.share,
        "num_pairs": len(pairs),
        "pairs_by_version": {str(number): count for number, count in sorted(counts.items())},
    }
    if pairs:
        scores = np.array([pair.score for pair in pairs], np.float64)
        shadow_scores = np.array([pair.shadow_score for pair in pairs], np.float64)
        content |= {
            "first_time": min(pair.time for pair in pairs).isoformat(timespec="seconds"),
            "last_time": max(pair.time for pair in pairs).isoformat(timespec="seconds"),
            "agreement": asdict(agreement(scores, shadow_scores, [pair.group_key for pair in pairs])),
            "worst": _worst(pairs, scores, shadow_scores),
            "runs": _runs(pairs, scores, shadow_scores),
            "plots": _plots(scores, shadow_scores),
        }
    return without_undefined(content)


def _worst(pairs: Sequence[ShadowPair], scores: Float64Array, shadow_scores: Float64Array) -> list[Report]:
    return [
        {
            "run": pairs[index].run,
            "time": pairs[index].time.isoformat(timespec="seconds"),
            "score": pairs[index].score,
            "shadow_score": pairs[index].shadow_score,
            "apart_std": apart,
            "prompt": pairs[index].prompt or None,
            "completion": pairs[index].completion or None,
        }
        for index, apart in worst_disagreements(scores, shadow_scores, MAX_WORST)
    ]


def _runs(pairs: Sequence[ShadowPair], scores: Float64Array, shadow_scores: Float64Array) -> list[Report]:
    """The runs with most pairs, each by itself."""
    rows = []
    runs = np.array([pair.run for pair in pairs], dtype=object)
    for run, _ in Counter(runs.tolist()).most_common(MAX_RUNS):
        of_run = np.flatnonzero(runs == run)
        found = agreement(scores[of_run], shadow_scores[of_run], [pairs[index].group_key for index in of_run.tolist()])
        rows.append(
            {
                "run": run,
                "num_pairs": found.num_pairs,
                "shift": found.shift.value,
                "scale": found.scale and found.scale.value,
                "pearson": found.pearson and found.pearson.value,
                "spearman": found.spearman and found.spearman.value,
                "num_groups_compared": found.flips and found.flips.num_groups,
                "flip_share": found.flips and found.flips.share.value,
            }
        )
    return rows


def _plots(scores: Float64Array, shadow_scores: Float64Array) -> Report:
    """Enough to draw from: every n-th pair, quantiles, histograms over common bins."""
    step = max(1, -(-len(scores) // MAX_POINTS))
    shares = np.linspace(0, 1, NUM_QUANTILES)
    both = np.concatenate([scores, shadow_scores])
    edges = np.histogram_bin_edges(both, bins=NUM_BINS)
    return {
        "points": np.stack([scores[::step], shadow_scores[::step]], axis=1).tolist(),
        "quantiles": [np.quantile(scores, shares).tolist(), np.quantile(shadow_scores, shares).tolist()],
        "edges": edges.tolist(),
        "counts": [np.histogram(values, bins=edges)[0].tolist() for values in (scores, shadow_scores)],
    }
