"""What is counted of training runs: their leases, how many are at work, and whether one of them takes it all."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TypeVar

from prometheus_client import Gauge

from rm_server.metrics.families import VERSION, Families, VersionKey, label_values

Labels = TypeVar("Labels", bound=tuple[str, ...])


class RunMetrics:
    """The gauges are the catalog's: every server on it has the same, so take the largest and do not add them up."""

    def __init__(self, families: Families) -> None:
        self._leases = families.gauge("rm_leases", "Leases that runs hold, of all servers on the catalog.", VERSION)
        self._leases_over = families.gauge(
            "rm_leases_over",
            "Leases that ran out (expired), or that their runs ended, within the last hour, of all servers.",
            ("model", "outcome"),
        )
        self._active = families.gauge(
            "rm_runs_active", "Runs with a name that were scored in the last five minutes, of all servers.", VERSION
        )
        self._largest_share = families.gauge(
            "rm_run_largest_token_share",
            "Of the tokens of a model's active runs, the share of the busiest one, of all servers.",
            ("model",),
        )
        self._given = families.counter(
            "rm_leases_given_total",
            "Leases that this server gave: to a run that had none (new), with the version that it had (kept), "
            "or with another one (moved).",
            (*VERSION, "change"),
        )
        self._shown: dict[Gauge, frozenset[tuple[str, ...]]] = {}

    def lease_given(self, key: VersionKey, had: VersionKey | None) -> None:
        """A run was given a version; ``had`` None: it never had one before."""
        change = "new" if had is None else "kept" if had == key else "moved"
        self._given.labels(*label_values(key), change).inc()

    def runs_counted(
        self,
        *,
        leases: Mapping[VersionKey, int],
        leases_over: Mapping[tuple[str, str], int],
        active: Mapping[VersionKey, int],
        largest_share: Mapping[str, float],
    ) -> None:
        """What the catalog says now; what is not named is gone. ``leases_over``: by model and outcome."""
        self._show(self._leases, {label_values(key): num_runs for key, num_runs in leases.items()})
        self._show(self._active, {label_values(key): num_runs for key, num_runs in active.items()})
        self._show(self._leases_over, leases_over)
        self._show(self._largest_share, {(model,): share for model, share in largest_share.items()})

    def _show(self, gauge: Gauge, values: Mapping[Labels, float]) -> None:
        """Never empties the gauge, not even for a moment: a scrape may be written meanwhile."""
        for labels in self._shown.get(gauge, frozenset()) - values.keys():
            with suppress(KeyError):  # the version may have been forgotten since
                gauge.remove(*labels)
        for labels, value in values.items():
            gauge.labels(*labels).set(value)
        self._shown[gauge] = frozenset(values)
