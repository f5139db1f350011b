"""How far a version's scores agree with people: the figures of a report. Pure: scores and lengths in, figures out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import special

from rm_server.training.statistics import (
    Clusters,
    Estimate,
    FloatArray,
    Interval,
    clustered_difference,
    clustered_mean,
    clustered_share,
    correlation_interval,
    feature_test,
    fit_choices,
    pearson,
    spearman,
)

MIN_TEXTS_TO_RANK = 3
"""A prompt with fewer rated texts has no rank correlation worth the name."""

LENGTH_MATCHED = (0.8, 1.25)
"""Pairs whose lengths, chosen over rejected, are within these are length-matched."""

LENGTH_RATIOS = (0.5, *LENGTH_MATCHED, 2.0)
"""Borders between bands of pairs by length; a border belongs to the band on the side of 1."""

NUM_BINS = 10
NUM_BARS = 40


@dataclass(frozen=True, slots=True)
class PairScores:
    """Scored pairs; every array has shape (num_pairs,).

    Lengths are in characters (of token ids: tokens), at least 1. ``clusters``: the prompt's group.
    ``subsets``: what part of the data a pair is from; "" where nothing says.
    """

    chosen: FloatArray
    rejected: FloatArray
    chosen_lengths: FloatArray
    rejected_lengths: FloatArray
    clusters: Clusters
    subsets: Sequence[str] = ()

    @property
    def margins(self) -> FloatArray:
        """Score of the chosen minus score of the rejected."""
        return self.chosen - self.rejected

    @property
    def length_ratios(self) -> FloatArray:
        """Chosen's length over rejected's."""
        return self.chosen_lengths / self.rejected_lengths

    @property
    def log_length_ratios(self) -> FloatArray:
        """Above 0 where the chosen is longer."""
        return np.log(self.length_ratios)


@dataclass(frozen=True, slots=True)
class RatedScores:
    """Scored texts with people's ratings; every array has shape (num_texts,)."""

    scores: FloatArray
    ratings: FloatArray
    clusters: Clusters


@dataclass(frozen=True, slots=True)
class BeyondLength:
    """Logistic regression of the choice on Δscore and Δlog-length, without intercept.

    ``coefficient`` is per standard deviation of Δscore and ``length_coefficient`` per standard deviation of
    Δlog-length, each taken over both orders of every pair (so the mean is 0): ``score_unit`` and ``log_length_unit``.
    A ``coefficient`` whose interval lies above 0 says: of two equally long completions, people choose the one with the
    higher score. None when ``is_separated`` (both together predict every choice: no finite estimate) or constant.
    ``t`` and ``p_value``: a score test of the coefficient being 0, which needs no finite estimate.
    ``curved_p_value``: the same with length as a cubic curve of its logarithm. People may like length up to a point,
    say; a score that is a function of length alone looks as if it knew more wherever theirs is another one (residual
    confounding), and here it does not.
    """

    coefficient: float | None
    interval: Interval | None
    length_coefficient: float | None
    length_interval: Interval | None
    is_separated: bool
    t: float | None
    p_value: float | None
    curved_p_value: float | None
    score_unit: float
    log_length_unit: float


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """Mean, standard deviation and quantiles (5, 25, 50, 75, 95 %), and counts of the histogram's bars."""

    mean: float
    std: float
    quantiles: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Distributions:
    """Scores of chosen and of rejected completions over common bars with these edges."""

    chosen: ScoreSummary
    rejected: ScoreSummary
    edges: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs about which the scores are about equally sure: mean predicted and observed share of agreement."""

    predicted: float
    observed: float
    interval: Interval | None
    count: int


@dataclass(frozen=True, slots=True)
class Reliability:
    """Whether sigmoid(Δscore) is the probability that people choose so.

    ``expected_calibration_error``: mean gap of the bins, weighted by count (Guo et al. 2017). ``brier_score``: mean
    (1 - p)² (Brier 1950), ``log_loss``: mean -log p, the Bradley–Terry loss; p = sigmoid(chosen - rejected).
    ``slope``: the factor on Δscore that fits best; below 1 the scores are too sure of themselves. None as in
    `BeyondLength`.
    """

    bins: tuple[Bin, ...]
    expected_calibration_error: float
    brier_score: float
    log_loss: float
    slope: float | None
    slope_interval: Interval | None


@dataclass(frozen=True, slots=True)
class LengthBand:
    """Pairs whose chosen completion has from ``low`` to ``high`` times the rejected one's length; None: no border."""

    low: float | None
    high: float | None
    accuracy: Estimate


@dataclass(frozen=True, slots=True)
class Agreement:
    """Correlation with ratings. ``within_prompts``: Spearman's within each prompt, averaged over ``num_prompts``.

    A reward model is trained on comparisons within a prompt, so that figure is the fair one. Intervals of the other
    two: cluster jackknife. NaN never stands here: what is not defined (constant values) is None.
    """

    num_texts: int
    pearson: float | None
    pearson_interval: Interval | None
    spearman: float | None
    spearman_interval: Interval | None
    within_prompts: float | None
    within_prompts_interval: Interval | None
    num_prompts: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All figures about one version on one set of pairs. Intervals are at 95 % and clustered by prompt.

    ``longer_wins_accuracy``: what always choosing the longer completion would reach. ``gain_over_longer_wins``: the
    difference. ``accuracy_longer_chosen`` and ``accuracy_shorter_chosen``: on pairs where people chose that one; None
    where there are no such pairs. ``length_correlation``: of Δscore with Δlog-length.
    """

    num_pairs: int
    num_prompts: int
    accuracy: float
    accuracy_interval: Interval | None
    length_matched_accuracy: float | None
    length_matched_interval: Interval | None
    num_length_matched: int
    longer_wins_accuracy: float
    longer_wins_interval: Interval | None
    gain_over_longer_wins: float
    gain_interval: Interval | None
    accuracy_longer_chosen: Estimate | None
    accuracy_shorter_chosen: Estimate | None
    length_correlation: float | None
    length_bands: tuple[LengthBand, ...]
    beyond_length: BeyondLength
    reliability: Reliability
    distributions: Distributions
    ratings: Agreement | None = None
    subsets: Mapping[str, Estimate] = field(default_factory=dict)


def evaluate(pairs: PairScores, rated: RatedScores | None = None) -> Evaluation:
    """Computes every figure. Raises ValueError for scores that are not finite, or when there are no pairs."""
    if not len(pairs.chosen):
        raise ValueError("There are no pairs to evaluate.")
    if not (np.isfinite(pairs.chosen).all() and np.isfinite(pairs.rejected).all()):
        raise ValueError("Scores must be finite.")
    hits = hits_of(pairs.margins)
    longer_hits = hits_of(pairs.log_length_ratios)
    accuracy = clustered_share(hits, pairs.clusters)
    ratios = pairs.length_ratios
    matched = _share_where(hits, (ratios >= LENGTH_MATCHED[0]) & (ratios <= LENGTH_MATCHED[1]), pairs.clusters)
    longer_wins = clustered_share(longer_hits, pairs.clusters)
    gain = clustered_difference(hits - longer_hits, pairs.clusters)
    return Evaluation(
        num_pairs=len(hits),
        num_prompts=len(np.unique(pairs.clusters)),
        accuracy=accuracy.value,
        accuracy_interval=accuracy.interval,
        length_matched_accuracy=matched.value if matched else None,
        length_matched_interval=matched.interval if matched else None,
        num_length_matched=matched.count if matched else 0,
        longer_wins_accuracy=longer_wins.value,
        longer_wins_interval=longer_wins.interval,
        gain_over_longer_wins=gain.value,
        gain_interval=gain.interval,
        accuracy_longer_chosen=_share_where(hits, longer_hits == 1, pairs.clusters),
        accuracy_shorter_chosen=_share_where(hits, longer_hits == 0, pairs.clusters),
        length_correlation=_symmetric_correlation(pairs.margins, pairs.log_length_ratios),
        length_bands=_by_length(hits, pairs),
        beyond_length=beyond_length(pairs),
        reliability=reliability(pairs.margins, pairs.clusters),
        distributions=distributions(pairs.chosen, pairs.rejected),
        ratings=None if rated is None else agreement(rated),
        subsets=_by_subset(hits, pairs),
    )


def hits_of(differences: FloatArray) -> FloatArray:
    """1 where the difference speaks for the chosen, 0 where against it, ½ for a tie."""
    return (np.sign(differences) + 1) / 2


def _share_where(
    hits: FloatArray, mask: np.ndarray[tuple[int], np.dtype[np.bool_]], clusters: Clusters
) -> Estimate | None:
    return clustered_share(hits[mask], clusters[mask]) if mask.any() else None


def _by_length(hits: FloatArray, pairs: PairScores) -> tuple[LengthBand, ...]:
    ratios = pairs.length_ratios
    numbers = np.sum([ratios >= border if border < 1 else ratios > border for border in LENGTH_RATIOS], axis=0)
    bands = []
    for number, (low, high) in enumerate(itertools.pairwise((None, *LENGTH_RATIOS, None))):
        accuracy = _share_where(hits, numbers == number, pairs.clusters)
        if accuracy is not None:
            bands.append(LengthBand(low, high, accuracy))
    return tuple(bands)


def _symmetric_correlation(x: FloatArray, y: FloatArray) -> float | None:
    """Over both orders of every pair, so both means are 0."""
    scale = math.sqrt(float((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else None


def _by_subset(hits: FloatArray, pairs: PairScores) -> dict[str, Estimate]:
    names = np.array(pairs.subsets if len(pairs.subsets) else [""] * len(hits))
    return {
        str(name): clustered_share(hits[names == name], pairs.clusters[names == name])
        for name in np.unique(names)
        if name
    }


def beyond_length(pairs: PairScores) -> BeyondLength:
    """What the score knows of people's choice beyond which completion is longer."""
    features = np.stack([pairs.margins, pairs.log_length_ratios], axis=1)
    units = np.sqrt((features**2).mean(axis=0))
    features = features / np.where(units > 0, units, 1)
    fit = fit_choices(features, pairs.clusters)
    test = feature_test(features, pairs.clusters)
    curved = feature_test(np.concatenate([features, _length_curves(pairs)], axis=1), pairs.clusters)
    return BeyondLength(
        coefficient=fit.coefficients[0],
        interval=fit.intervals[0],
        length_coefficient=fit.coefficients[1],
        length_interval=fit.intervals[1],
        is_separated=fit.is_separated,
        t=test[0] if test else None,
        p_value=test[1] if test else None,
        curved_p_value=curved[1] if curved else None,
        score_unit=float(units[0]),
        log_length_unit=float(units[1]),
    )


def _length_curves(pairs: PairScores) -> FloatArray:
    """What makes log-length a cubic curve, shape (num_pairs, 0 to 2): differences of its square and cube.

    Of few different lengths they say nothing new, and are left out.
    """
    lengths = np.log(np.stack([pairs.chosen_lengths, pairs.rejected_lengths]))
    lengths = (lengths - lengths.mean()) / (lengths.std() or 1)
    powers = np.stack([lengths[0] ** power - lengths[1] ** power for power in (1, 2, 3)], axis=1)
    return np.asarray(powers[:, 1 : np.linalg.matrix_rank(powers)])


def reliability(margins: FloatArray, clusters: Clusters) -> Reliability:
    """Compares how sure the scores are, sigmoid(|Δscore|) from ½ to 1 in ten bins, with how often they are right."""
    sureness = special.expit(np.abs(margins))
    hits = hits_of(margins)
    numbers = np.minimum(((sureness - 0.5) * 2 * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    bins = []
    for number in range(NUM_BINS):
        mask = numbers == number
        if mask.any():
            observed = clustered_share(hits[mask], clusters[mask])
            bins.append(Bin(float(sureness[mask].mean()), observed.value, observed.interval, observed.count))
    fit = fit_choices(margins[:, None], clusters)
    return Reliability(
        bins=tuple(bins),
        expected_calibration_error=sum(b.count * abs(b.observed - b.predicted) for b in bins) / len(margins),
        brier_score=float((special.expit(-margins) ** 2).mean()),
        log_loss=float(-special.log_expit(margins).mean()),
        slope=fit.coefficients[0],
        slope_interval=fit.intervals[0],
    )


def distributions(chosen: FloatArray, rejected: FloatArray) -> Distributions:
    """Both sides' scores, over common bars."""
    edges = np.histogram_bin_edges(np.concatenate([chosen, rejected]), NUM_BARS)
    return Distributions(_summary(chosen, edges), _summary(rejected, edges), tuple(edges.tolist()))


def _summary(scores: FloatArray, edges: FloatArray) -> ScoreSummary:
    return ScoreSummary(
        mean=float(scores.mean()),
        std=float(scores.std()),
        quantiles=tuple(np.quantile(scores, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()),
        counts=tuple(np.histogram(scores, edges)[0].tolist()),
    )


def _of_correlation(interval: Interval) -> Interval:
    """A mean's t interval knows no bounds, and of a few prompts goes beyond those of a correlation."""
    return max(-1.0, interval[0]), min(1.0, interval[1])


def agreement(rated: RatedScores) -> Agreement:
    """Correlations of scores with ratings, over all texts and within prompts."""
    scores, ratings, clusters = rated.scores, rated.ratings, rated.clusters
    members = [np.flatnonzero(clusters == name) for name in np.unique(clusters)]
    ranked = [spearman(scores[index], ratings[index]) for index in members if len(index) >= MIN_TEXTS_TO_RANK]
    defined = np.array([value for value in ranked if math.isfinite(value)])
    within = clustered_mean(defined, np.arange(len(defined))) if len(defined) else None
    pearson_value, spearman_value = pearson(scores, ratings), spearman(scores, ratings)
    return Agreement(
        num_texts=len(scores),
        pearson=pearson_value if math.isfinite(pearson_value) else None,
        pearson_interval=correlation_interval(lambda drawn: pearson(scores[drawn], ratings[drawn]), clusters),
        spearman=spearman_value if math.isfinite(spearman_value) else None,
        spearman_interval=correlation_interval(lambda drawn: spearman(scores[drawn], ratings[drawn]), clusters),
        within_prompts=within.value if within else None,
        within_prompts_interval=_of_correlation(within.interval) if within and within.interval else None,
        num_prompts=len(defined),
    )
