"""What runs' outcomes say about two arms: intervals, tests, and how many runs it takes. Pure: numbers in, numbers out.

A run is one observation, however many judgements its value is the mean of: runs of one arm differ by their seeds, and
that is the spread that a comparison of arms is up against.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy import special

Interval: TypeAlias = tuple[float, float]

ALPHA = 0.05
POWER = 0.8
MAX_RUNS_NEEDED = 1_000_000

MIN_EXPECTED_RUNS = 5.0
"""In every arm, for the chi-square distribution to describe the counts (Cochran 1954)."""

MIN_ANYTIME_RUNS = 5
"""In each arm, from which on one may look at any time: spreads of fewer are too often far too small by chance."""

ANYTIME_TUNED_AT = 10.0
"""Effective runs (see `anytime_interval`) at which the sequence is tightest: 20 runs in each arm."""


@dataclass(frozen=True, slots=True)
class Summary:
    """One arm's values. None: of a single run there is no spread; without any, no interval."""

    num_runs: int
    mean: float
    std: float | None
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """An arm minus its baseline. All but ``difference`` is None where the runs have no spread to judge it by.

    ``effect_size``: Hedges' g, the difference in pooled standard deviations, corrected for small samples (1981).
    """

    difference: float
    interval: Interval | None = None
    p_value: float | None = None
    degrees_of_freedom: float | None = None
    effect_size: float | None = None
    anytime_interval: Interval | None = None


def summarise(values: Sequence[float]) -> Summary:
    """Mean, standard deviation (n - 1), and Student's 95 % interval of the mean. Needs a value; all are finite."""
    mean, variance = _moments(values)
    if variance is None:
        return Summary(len(values), mean, None, None)
    half = _t_quantile(len(values) - 1, ALPHA) * math.sqrt(variance / len(values))
    return Summary(len(values), mean, math.sqrt(variance), (mean - half, mean + half) if variance > 0 else None)


def compare(values: Sequence[float], baseline: Sequence[float]) -> Comparison:
    """Welch's t test and its 95 % interval (Welch 1947), degrees of freedom by Satterthwaite (1946).

    An arm whose runs are all alike, as by a metric that is 0 or 1, shows no spread, and has the other's: a spread of 0
    would make any difference certain. ``anytime_interval`` is None where an arm has fewer than MIN_ANYTIME_RUNS.
    """
    (mean, variance), (base_mean, base_variance) = _moments(values), _moments(baseline)
    difference = mean - base_mean
    if variance is None or base_variance is None or variance + base_variance == 0:
        return Comparison(difference)
    num, base_num = len(values), len(baseline)
    freedom = _welch_freedom(variance / num, num, base_variance / base_num, base_num)
    variance, base_variance = variance or base_variance, base_variance or variance
    squared_error = variance / num + base_variance / base_num
    error = math.sqrt(squared_error)
    half = _t_quantile(freedom, ALPHA) * error
    total_freedom = num + base_num - 2
    pooled = math.sqrt(((num - 1) * variance + (base_num - 1) * base_variance) / total_freedom)
    return Comparison(
        difference=difference,
        interval=(difference - half, difference + half),
        p_value=2 * float(special.stdtr(freedom, -abs(difference) / error)),
        degrees_of_freedom=freedom,
        effect_size=difference / pooled * (1 - 3 / (4 * total_freedom - 1)),
        anytime_interval=anytime_interval(difference, error, freedom, num * base_num / (num + base_num))
        if min(num, base_num) >= MIN_ANYTIME_RUNS
        else None,
    )


def anytime_interval(difference: float, error: float, freedom: float, effective_runs: float) -> Interval:
    """An interval that holds, with 95 %, at all looks together, so that one may look after every run.

    The two-sided normal mixture of Howard, Ramdas, McAuliffe and Sekhon 2021 ("Time-uniform, nonparametric,
    nonasymptotic confidence sequences"), with estimated standard errors as in Waudby-Smith, Arbour, Sinha,
    Kennedy and Ramdas 2024 ("Time-uniform central limit theory and asymptotic confidence sequences"), who show that
    this holds for many runs. For few, it is stretched by Student's t over the normal quantile. ``effective_runs``: n·m
    / (n + m), the time on which the mixture runs.
    """
    surprise = -2 * math.log(ALPHA)
    scale = (surprise + math.log(surprise + 1)) / ANYTIME_TUNED_AT
    time = effective_runs * scale
    width = math.sqrt(2 * (time + 1) / time * math.log(math.sqrt(time + 1) / ALPHA))
    half = width * error * _t_quantile(freedom, ALPHA) / float(special.ndtri(1 - ALPHA / 2))
    return difference - half, difference + half


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values corrected for how many there are (Holm 1979): the chance of one false finding among all is held."""
    there = sorted((p_value, index) for index, p_value in enumerate(p_values) if p_value is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p_value, index) in enumerate(there):
        largest = max(largest, min(1.0, p_value * (len(there) - rank)))
        corrected[index] = largest
    return corrected


def runs_needed(std: float, baseline_std: float, difference: float, alpha: float = ALPHA) -> int | None:
    """Runs in each of two equal arms by which Welch's test finds so large a difference with a chance of 80 %.

    The power is that of the noncentral t distribution, as in Cohen 1988 ("Statistical power analysis for the
    behavioral sciences"), with Satterthwaite's degrees of freedom; the search begins at the normal
    distribution's n = (z_{1-α/2} + z_{power})² (σ² + σ'²) / δ², which is never more. None: over a million.
    """
    variances = std**2 + baseline_std**2
    if not difference or not variances:
        return None
    quantiles = float(special.ndtri(1 - alpha / 2) + special.ndtri(POWER))
    least = quantiles**2 * variances / difference**2
    if not least < MAX_RUNS_NEEDED:
        return None
    num = max(2, math.floor(least))
    while _power(num, std**2, baseline_std**2, abs(difference), alpha) < POWER:
        num += 1
    return num


def ratio_mismatch(observed: Sequence[int], expected: Sequence[float]) -> float | None:
    """The p value of Pearson's chi-square test that runs came to the arms by their shares; None: too few to say.

    A sample ratio mismatch says that runs are lost, or sent, otherwise than by chance, and then no comparison of the
    arms can be trusted (Fabijan et al. 2019, "Diagnosing sample ratio mismatch in online controlled experiments").
    An arm that was closed all the time, and got none, is no part of it.
    """
    counts = [(seen, wanted) for seen, wanted in zip(observed, expected, strict=True) if seen or wanted]
    if len(counts) < 2 or min(wanted for _, wanted in counts) < MIN_EXPECTED_RUNS:
        return None
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in counts)
    return float(special.chdtrc(len(counts) - 1, statistic))


def _moments(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and unbiased variance; equal values have the variance 0, whatever rounding says."""
    array = np.asarray(values, np.float64)
    mean = float(array.mean())
    if len(array) < 2:
        return mean, None
    return mean, 0.0 if array.min() == array.max() else float(array.var(ddof=1))


def _welch_freedom(squared_error: float, num: int, base_squared_error: float, base_num: int) -> float:
    # As shares of the larger one: squares of very small errors would be 0.
    largest = max(squared_error, base_squared_error)
    one, other = squared_error / largest, base_squared_error / largest
    return (one + other) ** 2 / (one**2 / (num - 1) + other**2 / (base_num - 1))


def _power(num: int, variance: float, baseline_variance: float, difference: float, alpha: float) -> float:
    freedom = _welch_freedom(variance, num, baseline_variance, num)
    shift = difference / math.sqrt((variance + baseline_variance) / num)
    return 1 - float(special.nctdtr(freedom, shift, _t_quantile(freedom, alpha)))


def _t_quantile(freedom: float, alpha: float) -> float:
    return float(special.stdtrit(freedom, 1 - alpha / 2))
