"""The few statistics that the figures are made of. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

median = statistics.median


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of ``values`` do not exceed (nearest rank); ``share`` in (0, 1]."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[math.ceil(share * len(values)) - 1]


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median of the ratios round by round: what slows a whole round down cancels out."""
    return median(a / b for a, b in zip(numerators, denominators, strict=True))


def jain_index(shares: Sequence[float]) -> float:
    """(sum x)^2 / (n * sum x^2): 1 when all are equal, 1/n when one has all.

    Jain, Chiu and Hawe, "A quantitative measure of fairness and discrimination", 1984.
    """
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))
