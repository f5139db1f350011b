"""What is counted of training runs: their leases, how many are at work, and whether one of them takes it all."""

from __future__ import annotations

from collections.abc import Mapping

from rm_server.metrics.families import VERSION, Families, VersionKey, label_values


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
        for gauge, num_by_version in ((self._leases, leases), (self._active, active)):
            gauge.clear()
            for key, num_runs in num_by_version.items():
                gauge.labels(*label_values(key)).set(num_runs)
        self._leases_over.clear()
        for labels, num_leases in leases_over.items():
            self._leases_over.labels(*labels).set(num_leases)
        self._largest_share.clear()
        for model, share in largest_share.items():
            self._largest_share.labels(model).set(share)
