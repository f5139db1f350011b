"""How two versions' scores of the same completions agree. Pure: arrays in, numbers out; what is undefined is absent.

Ranks, Kendall's tau and the Kolmogorov–Smirnov test are scipy's; Pearson's correlation is our own only because scipy's
gives up on scores far from one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Float64Array: TypeAlias = npt.NDArray[np.float64]
Int64Array: TypeAlias = npt.NDArray[np.int64]
Interval: TypeAlias = tuple[float, float]

CONFIDENCE_Z = 1.959963984540054
"""The normal distribution's quantile for 95 %, both sides."""

NEARLY_ONE = 1 - 1e-12
"""What a correlation of 1 counts as, whose z is infinite."""

MIN_GROUPS = 10
"""An interval from fewer groups than these would say more about chance than about the versions."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval; None where there is too little to give one."""

    value: float
    interval: Interval | None = None


@dataclass(frozen=True, slots=True)
class Flips:
    """Of the groups with at least two completions, those whose best completion is another one.

    A tie is no disagreement: a group flips when no completion is best (or tied for best) by both versions.
    ``share`` has Wilson's interval.
    """

    num_groups: int
    num_flipped: int
    share: Estimate


@dataclass(frozen=True, slots=True)
class Agreement:
    """Scores of one version, and a shadow's of the same completions. None: undefined, as for scores that never differ.

    ``shift``: mean of shadow minus score. ``shift_std``: that in standard deviations of the score. ``scale``: standard
    deviation of the shadow over that of the score (both with n - 1). ``ks_statistic``: the largest distance between the
    two distributions; ``ks_p_value`` is exact for two independent samples of continuous scores, which pairs are not: a
    yardstick, not a proof. ``within_groups``: Spearman's correlation of completions of one prompt, by their ranks less
    the mean of their group's, which does not depend on how large groups are as flips do. Intervals are a jackknife's
    over groups, for completions of one prompt are not independent; Spearman's holds the ranks fixed.
    """

    num_pairs: int
    num_groups: int
    score_mean: float
    shadow_mean: float
    shift: Estimate
    ks_statistic: float
    ks_p_value: float
    score_std: float | None = None
    shadow_std: float | None = None
    shift_std: float | None = None
    scale: Estimate | None = None
    pearson: Estimate | None = None
    spearman: Estimate | None = None
    within_groups: Estimate | None = None
    kendall: float | None = None
    flips: Flips | None = None


def agreement(scores: Float64Array, shadow_scores: Float64Array, groups: Sequence[str]) -> Agreement:
    """Compares scores, both of shape (num_pairs,) and finite; ``groups`` names each pair's group.

    Raises ValueError without a single pair.
    """
    x, y = np.asarray(scores, np.float64), np.asarray(shadow_scores, np.float64)
    if not (len(x) == len(y) == len(groups)) or not len(x):
        raise ValueError(f"{len(x)} scores, {len(y)} shadow scores and {len(groups)} groups; one each is needed.")
    index = _numbered(groups)
    x_std, y_std = deviation(x), deviation(y)
    x_ranks, y_ranks = _ranks(x), _ranks(y)
    x_within, y_within = _less_means(x_ranks, index), _less_means(y_ranks, index)
    intervals = _jackknife(x, y, {"spearman": (x_ranks, y_ranks), "within_groups": (x_within, y_within)}, index)
    statistic, p_value = kolmogorov_smirnov(x, y)
    shift = float(y.mean() - x.mean())
    return Agreement(
        num_pairs=len(x),
        num_groups=int(index.max()) + 1,
        score_mean=float(x.mean()),
        shadow_mean=float(y.mean()),
        shift=Estimate(shift, intervals.get("shift")),
        ks_statistic=statistic,
        ks_p_value=p_value,
        score_std=x_std,
        shadow_std=y_std,
        shift_std=None if x_std is None else shift / x_std,
        scale=None if x_std is None or y_std is None else Estimate(y_std / x_std, intervals.get("scale")),
        pearson=_estimate(pearson(x, y), intervals.get("pearson")),
        spearman=_estimate(pearson(x_ranks, y_ranks), intervals.get("spearman")),
        within_groups=_estimate(pearson(x_within, y_within), intervals.get("within_groups")),
        kendall=kendall(x, y),
        flips=flips(x, y, index),
    )


def pearson(x: Float64Array, y: Float64Array) -> float | None:
    """Pearson's correlation; None where one of them never differs, or with fewer than two pairs."""
    if deviation(x) is None or deviation(y) is None:
        return None
    x, y = x - x.mean(), y - y.mean()
    # Each by its own norm first: products of very large or very small scores would leave the range of floats.
    return float(np.clip((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)), -1.0, 1.0))


def spearman(x: Float64Array, y: Float64Array) -> float | None:
    """Spearman's correlation, ties at their mean rank; None where one of them never differs."""
    return pearson(_ranks(x), _ranks(y))


def kendall(x: Float64Array, y: Float64Array) -> float | None:
    """Kendall's tau-b; None where one of them never differs."""
    if deviation(x) is None or deviation(y) is None:
        return None
    from scipy import stats  # takes half a second to import: a server needs it for reports alone

    return float(stats.kendalltau(x, y).statistic)


def kolmogorov_smirnov(x: Float64Array, y: Float64Array) -> tuple[float, float]:
    """The two-sample statistic and its two-sided p value: exact up to 10 000 pairs, asymptotic beyond."""
    from scipy import stats

    found = stats.ks_2samp(x, y)
    return float(found.statistic), float(found.pvalue)


def flips(x: Float64Array, y: Float64Array, groups: Int64Array) -> Flips | None:
    """See `Flips`; ``groups``: the number of each pair's group. None where no group has two completions."""
    members = [part for part in _parts(groups) if len(part) > 1]
    if not members:
        return None
    flipped = sum(not bool(((x[part] == x[part].max()) & (y[part] == y[part].max())).any()) for part in members)
    share = flipped / len(members)
    return Flips(len(members), flipped, Estimate(share, wilson_interval(share, len(members))))


def wilson_interval(share: float, num: int) -> Interval:
    """Wilson's 95 % interval (1927) of a share of ``num`` independent observations."""
    z2 = CONFIDENCE_Z**2
    centre = (share + z2 / (2 * num)) / (1 + z2 / num)
    half = CONFIDENCE_Z / (1 + z2 / num) * float(np.sqrt(share * (1 - share) / num + z2 / (4 * num**2)))
    return max(0.0, centre - half), min(1.0, centre + half)


def worst_disagreements(scores: Float64Array, shadow_scores: Float64Array, limit: int) -> list[tuple[int, float]]:
    """The pairs that differ most once shift and scale are removed: (index, shadow minus score, in deviations).

    Largest first. Empty where one of them never differs: there is no scale then.
    """
    x_std, y_std = deviation(scores), deviation(shadow_scores)
    if x_std is None or y_std is None:
        return []
    apart = (shadow_scores - shadow_scores.mean()) / y_std - (scores - scores.mean()) / x_std
    order = np.argsort(-np.abs(apart), kind="stable")[:limit]
    return [(int(index), float(apart[index])) for index in order]


def deviation(values: Float64Array) -> float | None:
    """The standard deviation (n - 1); None where they never differ, whatever rounding says."""
    if len(values) < 2 or values.max() == values.min():
        return None
    std = float(values.std(ddof=1))
    return std if std > 0 else None


def _ranks(values: Float64Array) -> Float64Array:
    from scipy import stats

    ranks: Float64Array = stats.rankdata(values)
    return ranks


def _less_means(ranks: Float64Array, groups: Int64Array) -> Float64Array:
    """Each less the mean of its group."""
    means = np.bincount(groups, weights=ranks) / np.bincount(groups)
    return np.asarray(ranks - means[groups])


def _numbered(groups: Sequence[str]) -> Int64Array:
    return np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)[1].astype(np.int64)


def _parts(groups: Int64Array) -> Iterator[Int64Array]:
    order = np.argsort(groups, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)


def _jackknife(
    x: Float64Array, y: Float64Array, ranks: Mapping[str, tuple[Float64Array, Float64Array]], groups: Int64Array
) -> dict[str, Interval]:
    """t intervals by what leaving out each group changes (Efron and Stein 1981), all from the groups' moments.

    ``ranks``: those of both, for each correlation of ranks. Of a scale's logarithm and a correlation's z (Fisher 1921),
    which are nearly normal. Where groups are few a bootstrap's percentiles are too narrow.
    """
    num_groups = int(groups.max()) + 1
    if num_groups < MIN_GROUPS:
        return {}
    shift, scale, correlation = _from_moments(_kept(x, y, groups))
    by_ranks = {name: _from_moments(_kept(*both, groups))[2] for name, both in ranks.items()}
    between = float(y.mean() - x.mean())
    found = {
        "shift": _t_interval(shift + between),
        "scale": _t_interval(np.log(scale), np.exp),
        "pearson": _t_interval(np.arctanh(correlation), np.tanh),
        **{name: _t_interval(np.arctanh(of_ranks), np.tanh) for name, of_ranks in by_ranks.items()},
    }
    return {name: interval for name, interval in found.items() if interval is not None}


def _kept(x: Float64Array, y: Float64Array, groups: Int64Array) -> Float64Array:
    """Moments of all groups, and without each, shape (1 + num_groups, 6)."""
    sums = _group_moments(x - x.mean(), y - y.mean(), groups)
    return np.concatenate([sums.sum(axis=0, keepdims=True), sums.sum(axis=0) - sums])


def _t_interval(
    values: Float64Array, back: Callable[[Float64Array], Float64Array] = lambda ends: ends
) -> Interval | None:
    """From the first value, and what it is without each group; None where one of them is not finite."""
    from scipy import stats

    if not np.isfinite(values).all():
        return None
    whole, without = values[0], values[1:]
    error = np.sqrt((len(without) - 1) / len(without) * ((without - whole) ** 2).sum())
    half = stats.t.ppf(0.975, len(without) - 1) * error
    low, high = back(np.array([whole - half, whole + half]))
    return float(low), float(high)


def _group_moments(x: Float64Array, y: Float64Array, groups: Int64Array) -> Float64Array:
    """Shape (num_groups, 6): count and sums of x, y, x², y², xy."""
    columns = (np.ones_like(x), x, y, x * x, y * y, x * y)
    return np.stack([np.bincount(groups, weights=column) for column in columns], axis=1)


def _from_moments(moments: Float64Array) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Shift, scale and correlation of each row; NaN where they are undefined."""
    num, x, y, xx, yy, xy = moments.T
    x_variance, y_variance = xx / num - (x / num) ** 2, yy / num - (y / num) ** 2
    covariance = xy / num - x * y / num**2
    with np.errstate(invalid="ignore", divide="ignore"):
        # Rounding leaves a trace of variance where there is none.
        x_std = np.sqrt(np.where(x_variance > 1e-15 * xx / num, x_variance, np.nan))
        y_std = np.sqrt(np.where(y_variance > 1e-15 * yy / num, y_variance, np.nan))
        return (y - x) / num, y_std / x_std, np.clip(covariance / (x_std * y_std), -NEARLY_ONE, NEARLY_ONE)


def _estimate(value: float | None, interval: Interval | None) -> Estimate | None:
    return None if value is None else Estimate(value, interval)
