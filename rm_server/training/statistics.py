"""Estimates with 95 % intervals that know pairs of one prompt are not independent. Pure: arrays in, numbers out.

In every function ``clusters`` names the prompt (group) of each observation. With fewer than two clusters nothing can be
said about the spread between them, and the interval is None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats

FloatArray: TypeAlias = npt.NDArray[np.float64]
Clusters: TypeAlias = npt.NDArray[np.str_] | npt.NDArray[np.int64]
Interval: TypeAlias = tuple[float, float]

CONFIDENCE = 0.95

MAX_LEFT_OUT = 200
"""More clusters than these are left out by several together: of so many no interval is better for more."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number, its 95 % interval, and how many observations it is from."""

    value: float
    interval: Interval | None
    count: int


@dataclass(frozen=True, slots=True)
class LogisticFit:
    """Coefficients of a logistic regression without intercept, shape (num_features,).

    ``is_separated``: some weighting predicts every choice, so that no finite estimate exists (Albert and Anderson
    1984); the coefficients are None then, where a feature is always 0, and where one is a sum of others.
    """

    coefficients: tuple[float | None, ...]
    intervals: tuple[Interval | None, ...]
    is_separated: bool


def cluster_sums(values: FloatArray, clusters: Clusters) -> FloatArray:
    """Sums of each cluster's rows; (num, …) becomes (num_clusters, …)."""
    names, index = np.unique(clusters, return_inverse=True)
    sums = np.zeros((len(names), *values.shape[1:]))
    np.add.at(sums, index, values)
    return sums


def t_quantile(num_clusters: int) -> float:
    """The two-sided 95 % quantile of Student's t with ``num_clusters - 1`` degrees of freedom.

    Cameron and Miller 2015, "A practitioner's guide to cluster-robust inference", section VI.D.
    """
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, num_clusters - 1))


def clustered_mean(values: FloatArray, clusters: Clusters) -> Estimate:
    """A mean with its cluster-robust t interval."""
    mean = float(values.mean())
    spread = _clustered_variance(values, clusters)
    if spread is None:
        return Estimate(mean, None, len(values))
    variance, num_clusters = spread
    half = t_quantile(num_clusters) * variance**0.5
    return Estimate(mean, (mean - half, mean + half), len(values))


def clustered_difference(differences: FloatArray, clusters: Clusters) -> Estimate:
    """The mean of paired differences of hits, each from -1 to 1, with a t interval within these bounds.

    The interval is that of the data with one more 1 and one more -1, each of a cluster of its own, so that it is not of
    width 0 where few differ: Bonett and Price 2012, "Adjusted Wald confidence interval for a difference of binomial
    proportions based on paired data".
    """
    mean = float(differences.mean())
    names, index = np.unique(clusters, return_inverse=True)
    if len(names) < 2:
        return Estimate(mean, None, len(differences))
    adjusted = clustered_mean(np.append(differences, (1.0, -1.0)), np.append(index, (len(names), len(names) + 1)))
    assert adjusted.interval is not None
    low, high = adjusted.interval
    return Estimate(mean, (max(-1.0, low), min(1.0, high)), len(differences))


def clustered_share(hits: FloatArray, clusters: Clusters) -> Estimate:
    """A share (of hits 1, misses 0, ties ½) with a Wilson interval for clustered samples.

    Wilson's interval (1927) with the effective sample size n / design effect and Student's t in place of z; it stays
    inside [0, 1]. Korn and Graubard 1998; Dean and Pagano 2015, "Evaluating confidence interval methods for binomial
    proportions in clustered surveys". Where all agree, the design effect is unknown, and clusters are counted instead.
    """
    share = float(hits.mean())
    spread = _clustered_variance(hits, clusters)
    if spread is None:
        return Estimate(share, None, len(hits))
    variance, num_clusters = spread
    binomial = share * (1 - share)
    if binomial <= 0:
        effective = float(num_clusters)
    else:
        effective = min(float(len(hits)), binomial / variance) if variance > 0 else float(len(hits))
    t = t_quantile(num_clusters)
    shrink = 1 + t * t / effective
    centre = (share + t * t / (2 * effective)) / shrink
    half = t / shrink * (binomial / effective + t * t / (4 * effective**2)) ** 0.5
    return Estimate(share, (max(0.0, centre - half), min(1.0, centre + half)), len(hits))


def _clustered_variance(values: FloatArray, clusters: Clusters) -> tuple[float, int] | None:
    """Of the mean, by the jackknife: (G-1)/G · Σ_g (mean without g - mean)²; and G, the number of clusters.

    Of clusters of one size it is the sandwich of Liang and Zeger (1986) with G/(G-1). Where a few clusters have most of
    the observations the sandwich is far too small (MacKinnon, Nielsen and Webb 2023, "Fast and reliable jackknife and
    bootstrap methods for cluster-robust inference").
    """
    sums = cluster_sums(values - values.mean(), clusters)
    if len(sums) < 2:
        return None
    changes = sums / (len(values) - cluster_sums(np.ones(len(values)), clusters))
    return float((len(sums) - 1) / len(sums) * (changes**2).sum()), len(sums)


def fit_choices(features: FloatArray, clusters: Clusters) -> LogisticFit:
    """Logistic regression of "the first was chosen" on differences (first - second), without intercept.

    ``features``, shape (num_pairs, num_features): chosen minus rejected. Every pair also counts the other way round,
    negated and not chosen; that doubles likelihood and scores alike, so one direction gives the same fit.
    The intervals are cluster-robust, by Student's t and the jackknife (G-1)/G · Σ_g c_g c_gᵀ: c_g = (H - H_g)⁻¹ u_g,
    of a cluster's summed scores u_g and Hessian H_g, is what leaving it out changes, but for curvature (MacKinnon,
    Nielsen and Webb 2025, "Cluster-robust jackknife and bootstrap inference for logistic regression models"). None
    where the pairs without some cluster determine no fit.
    """
    used = np.flatnonzero((features != 0).any(axis=0))
    coefficients: list[float | None] = [None] * features.shape[1]
    intervals: list[Interval | None] = [None] * features.shape[1]
    if not len(used):
        return LogisticFit(tuple(coefficients), tuple(intervals), is_separated=False)
    units = np.abs(features[:, used]).max(axis=0)
    x = features[:, used] / units
    if _is_separated(x):
        return LogisticFit(tuple(coefficients), tuple(intervals), is_separated=True)
    if np.linalg.matrix_rank(x) < len(used):
        return LogisticFit(tuple(coefficients), tuple(intervals), is_separated=False)

    beta = _maximise_likelihood(x)
    misses = special.expit(-(x @ beta))
    scores = cluster_sums(x * misses[:, None], clusters)
    hessians = cluster_sums((misses * (1 - misses))[:, None, None] * x[:, :, None] * x[:, None, :], clusters)
    without = hessians.sum(axis=0) - hessians
    num_clusters = len(scores)
    for position, column in enumerate(used):
        coefficients[column] = float(beta[position] / units[position])
    if num_clusters > 1 and (np.linalg.matrix_rank(without, hermitian=True) == len(used)).all():
        changes = np.linalg.solve(without, scores[:, :, None])[:, :, 0]
        halves = t_quantile(num_clusters) * np.sqrt((num_clusters - 1) / num_clusters * (changes**2).sum(axis=0))
        lows, highs = (beta - halves) / units, (beta + halves) / units
        for position, column in enumerate(used):
            intervals[column] = (float(lows[position]), float(highs[position]))
    return LogisticFit(tuple(coefficients), tuple(intervals), is_separated=False)


def feature_test(features: FloatArray, clusters: Clusters) -> tuple[float, float] | None:
    """Whether the first feature adds to the others in `fit_choices`: Student's t and its two-sided p value.

    A score test: it fits only the model without that feature, and is a one-sample t test of the clusters' efficient
    scores (Boos 1992, "On generalized score tests"). It holds where the choice is nearly, or wholly, predicted, and
    Wald's interval becomes useless (Hauck and Donner 1977). None where the other features alone predict every choice,
    or the first is a sum of them, with fewer than two clusters, or without any spread.
    """
    first, others = features[:, 0], features[:, 1:]
    others = others[:, (others != 0).any(axis=0)]
    if others.shape[1] and _is_separated(others):
        return None
    misses = special.expit(-(others @ _maximise_likelihood(others))) if others.shape[1] else np.full(len(first), 0.5)
    weighted = others * (misses * (1 - misses))[:, None]
    residual = first - others @ np.linalg.lstsq(weighted.T @ others, weighted.T @ first)[0]
    if np.abs(residual).max() <= 1e-9 * np.abs(first).max():
        return None
    scores = cluster_sums(residual * misses, clusters)
    if len(scores) < 2 or not scores.std() > 0:
        return None
    result = stats.ttest_1samp(scores, 0.0)
    return float(result.statistic), float(result.pvalue)


def _maximise_likelihood(x: FloatArray) -> FloatArray:
    """The coefficients β that maximise Σ log σ(xβ), which is concave."""

    def gradient(beta: FloatArray) -> FloatArray:
        return -(x * special.expit(-(x @ beta))[:, None]).sum(axis=0)  # type: ignore[no-any-return]

    def hessian(beta: FloatArray) -> FloatArray:
        p = special.expit(x @ beta)
        return (x * (p * (1 - p))[:, None]).T @ x  # type: ignore[no-any-return]

    result = optimize.minimize(
        lambda beta: -special.log_expit(x @ beta).sum(),
        np.zeros(x.shape[1]),
        jac=gradient,
        hess=hessian,
        method="trust-exact",
        options={"gtol": 1e-8 * len(x)},
    )
    return np.asarray(result.x, np.float64)


def _is_separated(x: FloatArray) -> bool:
    """Whether some β has xβ ≥ 0 for all pairs and > 0 for one: a linear programme decides."""
    result = optimize.linprog(-x.sum(axis=0), A_ub=-x, b_ub=np.zeros(len(x)), bounds=[(-1, 1)] * x.shape[1])
    return bool(-result.fun > 1e-9 * np.abs(x).sum())


def correlation_interval(statistic: Callable[[npt.NDArray[np.intp]], float], clusters: Clusters) -> Interval | None:
    """The t interval of a correlation by the jackknife over clusters, of Fisher's z, which is nearly normal (1921).

    A jackknife that leaves out groups: Efron and Stein 1981, "The jackknife estimate of variance". A bootstrap's
    percentiles are too narrow for few clusters. ``statistic`` takes indices of observations. None where it is not
    defined (NaN), or is 1 or -1, also without one of the groups.
    """
    names, index = np.unique(clusters, return_inverse=True)
    index %= MAX_LEFT_OUT
    num_groups = min(len(names), MAX_LEFT_OUT)
    if num_groups < 2:
        return None
    everything = np.arange(len(index))
    kept = [everything, *(np.flatnonzero(index != group) for group in range(num_groups))]
    with np.errstate(divide="ignore", invalid="ignore"):  # rounding goes beyond 1
        z, *without = np.arctanh([statistic(observations) for observations in kept])
    if not np.isfinite([z, *without]).all():
        return None
    error = np.sqrt((num_groups - 1) / num_groups * ((np.array(without) - z) ** 2).sum())
    half = t_quantile(num_groups) * error
    return float(np.tanh(z - half)), float(np.tanh(z + half))


def pearson(x: FloatArray, y: FloatArray) -> float:
    """Pearson's correlation; NaN where one of them is constant."""
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else float("nan")


def spearman(x: FloatArray, y: FloatArray) -> float:
    """Spearman's rank correlation, ties at their mean rank; NaN where one of them is constant."""
    return pearson(stats.rankdata(x), stats.rankdata(y))
