"""Numbers about texts and scores that show a policy gaming its reward: n-grams, correlations, win rates. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

_Z = 1.959964  # 95 %


@dataclass(frozen=True, slots=True)
class WinRate:
    """How often one of two texts was preferred: wins plus half the ties, over all pairs."""

    wins: int
    ties: int
    losses: int

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> WinRate:
        pairs = list(zip(ours, theirs, strict=True))
        wins = sum(one > other for one, other in pairs)
        losses = sum(one < other for one, other in pairs)
        return cls(wins, len(pairs) - wins - losses, losses)

    @property
    def value(self) -> float:
        return (self.wins + self.ties / 2) / (self.wins + self.ties + self.losses)

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, by Wilson's score (1927). With ties it is too wide rather than too narrow: they vary less."""
        num_pairs, share = self.wins + self.ties + self.losses, self.value
        centre = share + _Z**2 / (2 * num_pairs)
        spread = _Z * math.sqrt(share * (1 - share) / num_pairs + _Z**2 / (4 * num_pairs**2))
        scale = 1 + _Z**2 / num_pairs
        return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def distinct_share(texts: Sequence[str], n: int) -> float | None:
    """Different n-grams of words over all of them (Li et al. 2016); None where there is no n-gram."""
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else None


def repeated_share(texts: Sequence[str], n: int) -> float | None:
    """The share of n-grams of words that occurred before in the same text; None where there is no n-gram."""
    counts = [(len(grams), len(set(grams))) for text in texts if (grams := _grams(text, n))]
    num_grams = sum(count for count, _ in counts)
    return 1 - sum(distinct for _, distinct in counts) / num_grams if num_grams else None


def correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Pearson's; None where one of them does not vary."""
    if len(one) < 3 or len(set(one)) == 1 or len(set(other)) == 1:
        return None
    mean_one, mean_other = fmean(one), fmean(other)
    products = sum((a - mean_one) * (b - mean_other) for a, b in zip(one, other, strict=True))
    return products / ((len(one) - 1) * stdev(one) * stdev(other))


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return list(zip(*(words[i:] for i in range(n)), strict=False))
