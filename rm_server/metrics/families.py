"""Declares metrics in one registry, and knows which of them have a series for each version: those go with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

VersionKey = tuple[str, int]
"""(model, version)."""

VERSION = ("model", "version")
"""The labels of what is counted for each version."""

OK = "ok"
"""The value of the label ``reason`` where nothing failed; otherwise it is the error's reason in lower case."""

# Scoring takes milliseconds, a cold load minutes.
LATENCY_BUCKETS_S = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)

Family = TypeVar("Family", Counter, Gauge, Histogram)
Child = TypeVar("Child")


class Families:
    """Where the parts of `Metrics` declare what they count."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._of_versions: list[Counter | Gauge | Histogram] = []
        self._of_loaded_versions: list[Gauge] = []
        self._forget_remembered: list[Callable[[], None]] = []

    def counter(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Counter:
        """Goes up only; ``name`` ends in ``_total``."""
        return self._noted(Counter(name, documentation, labels, registry=self.registry), labels)

    def gauge(
        self, name: str, documentation: str, labels: Sequence[str] = (), *, is_of_loaded_versions: bool = False
    ) -> Gauge:
        """Goes up and down. ``is_of_loaded_versions``: a version that is not in memory has no sample."""
        gauge = self._noted(Gauge(name, documentation, labels, registry=self.registry), labels)
        if is_of_loaded_versions:
            self._of_loaded_versions.append(gauge)
        return gauge

    def histogram(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str] = (),
        buckets: Sequence[float] = LATENCY_BUCKETS_S,
    ) -> Histogram:
        """Seconds, unless the name says otherwise."""
        return self._noted(Histogram(name, documentation, labels, buckets=buckets, registry=self.registry), labels)

    def remembered(self, child_of: Callable[..., Child]) -> Callable[..., Child]:
        """A metric's ``labels`` for what every call touches: to look a child up each time costs more than to count."""
        remembering = cache(child_of)
        self._forget_remembered.append(remembering.cache_clear)
        return remembering

    def version_unloaded(self, key: VersionKey) -> None:
        """A version is out of memory; what it counted stays."""
        _remove(self._of_loaded_versions, key)

    def version_forgotten(self, key: VersionKey) -> None:
        """Nothing of a version is shown any more; what it counts from now on begins at 0."""
        _remove(self._of_versions, key)
        for forget in self._forget_remembered:
            forget()  # one entry cannot be taken out, and this is rare

    def _noted(self, family: Family, labels: Sequence[str]) -> Family:
        if set(VERSION) <= set(labels):
            self._of_versions.append(family)
        return family


def label_values(key: VersionKey | None) -> tuple[str, str]:
    """Model and version as labels; empty where no version was chosen."""
    return ("", "") if key is None else (key[0], str(key[1]))


def _remove(families: Sequence[Counter | Gauge | Histogram], key: VersionKey) -> None:
    labels = dict(zip(VERSION, label_values(key), strict=True))
    for family in families:
        family.remove_by_labels(labels)
