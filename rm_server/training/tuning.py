"""Which way of computing a version is fastest: the candidates, and the choice among what was measured. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeAlias

import numpy as np

from rm_server.registry.manifest import Manifest, Precision
from rm_server.registry.records import VersionKey

# Lengths of texts in training runs, in tokens; log-normal, cut at what the version takes.
MEDIAN_TOKENS, P95_TOKENS, MAX_TOKENS, MIN_TOKENS = 180, 600, 1024, 8
_P95_QUANTILE = 1.645  # of the standard normal distribution

USUAL_BATCH_TOKENS = 4096
BATCH_TOKENS = (1024, 2048, USUAL_BATCH_TOKENS, 8192)

# Nothing is given up, in exactness, memory or latency, for less than this.
WORTHWHILE = 1.03
WORTHWHILE_BATCH = 1.02
# A way that is so much slower than the best one in a first try is not looked at again.
HOPELESS = 2.0
_MAX_WORKERS = 16
_THREADS_BETWEEN = 4
# From the most exact; the scores of bf16 have the coarsest steps.
_EXACTNESS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")

Crew: TypeAlias = tuple[int, int]
"""Workers, and threads of each."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of computing a version."""

    key: VersionKey
    precision: Precision
    crew: Crew


@dataclass(frozen=True, slots=True)
class Measured:
    """An arm with its rates in tokens/s, one a round, of all workers together."""

    arm: Arm
    max_batch_tokens: int
    rates: tuple[float, ...]

    @property
    def tokens_per_s(self) -> float:
        """The median of the rounds."""
        return median(self.rates)

    @property
    def spread(self) -> float:
        """Largest minus smallest rate, as a share of the median."""
        return (max(self.rates) - min(self.rates)) / self.tokens_per_s


def crews(device: str, cores: int) -> tuple[Crew, ...]:
    """Few workers with many threads, and the other way round; one process where a GPU computes."""
    if device != "cpu":
        return ((1, cores),)
    workers = {1, cores} | ({cores // _THREADS_BETWEEN} if cores >= 2 * _THREADS_BETWEEN else set())
    return tuple((number, cores // number) for number in sorted(workers) if number <= _MAX_WORKERS)


def precisions(manifest: Manifest, device: str) -> tuple[Precision, ...]:
    """Those that a version can be loaded in."""
    if manifest.kind == "onnx":
        return (manifest.precision or "fp32",)
    return ("fp32", "bf16") if device == "cpu" else ("fp32", "bf16", "fp16")


def lengths(max_tokens: int, num_items: int, seed: int = 0) -> list[int]:
    """Log-normal lengths in tokens; ``max_tokens`` 0: the version has no limit."""
    sigma = math.log(P95_TOKENS / MEDIAN_TOKENS) / _P95_QUANTILE
    longest = min(MAX_TOKENS, max_tokens or MAX_TOKENS)
    drawn = np.random.default_rng(seed).lognormal(math.log(MEDIAN_TOKENS), sigma, num_items)
    return [int(length) for length in np.clip(drawn, min(MIN_TOKENS, longest), longest)]


def hopeful(tried: Sequence[Measured]) -> list[Arm]:
    """The arms worth measuring, of each version: not those that were far slower than its best whenever tried.

    The best of an arm's tries counts: what else the machine does makes it slower and never faster.
    """
    best = {measured.arm.key: 0.0 for measured in tried}
    for measured in tried:
        best[measured.arm.key] = max(best[measured.arm.key], *measured.rates)
    return [one.arm for one in tried if max(one.rates) * HOPELESS >= best[one.arm.key]]


def best_arm(measured: Collection[Measured]) -> Measured:
    """The fastest; of those about as fast, the most exact, then the one with the fewest workers (each takes memory)."""
    fastest = max(one.tokens_per_s for one in measured)
    as_fast = [one for one in measured if one.tokens_per_s * WORTHWHILE >= fastest]
    return min(as_fast, key=lambda one: (_EXACTNESS.index(one.arm.precision), one.arm.crew[0], -one.tokens_per_s))


def best_of_each(measured: Sequence[Measured]) -> list[Measured]:
    """The best arm of each version, in the order in which they come."""
    keys = dict.fromkeys(one.arm.key for one in measured)
    return [best_arm([one for one in measured if one.arm.key == key]) for key in keys]


def best_batch(measured: Collection[Measured]) -> Measured:
    """The smallest batch that is about as fast as the fastest: a shorter wait for those who come meanwhile."""
    fastest = max(one.tokens_per_s for one in measured)
    as_fast = [one for one in measured if one.tokens_per_s * WORTHWHILE_BATCH >= fastest]
    return min(as_fast, key=lambda one: one.max_batch_tokens)
