"""What is counted of the scores themselves: their distribution, their log, and how shadows agree with them."""

from __future__ import annotations

from contextlib import suppress

from rm_server.metrics.families import VERSION, Families, VersionKey, label_values


class ScoreMetrics:
    """Scores of late, the score log, shadows. The version of a shadow's metrics is the shadow."""

    def __init__(self, families: Families) -> None:
        # A mean on the common scale says how far the texts of now are from those it was calibrated on.
        self._mean = families.gauge(
            "rm_score_mean",
            "Mean of a version's raw scores, the last 1000 or so.",
            VERSION,
            is_of_loaded_versions=True,
        )
        self._std = families.gauge(
            "rm_score_std",
            "Standard deviation of a version's raw scores, the last 1000 or so.",
            VERSION,
            is_of_loaded_versions=True,
        )
        self._calibrated_mean = families.gauge(
            "rm_score_calibrated_mean",
            "The mean on the model's common scale, for versions with a calibration.",
            VERSION,
            is_of_loaded_versions=True,
        )
        self._calibrated: set[VersionKey] = set()
        self._logged = families.counter(
            "rm_score_log_items_total",
            "Scored items for the score log: written, or dropped because too much waits for the disk.",
            ("outcome",),
        )
        self._shadow_items = families.counter(
            "rm_shadow_items_total",
            "Completions that a shadow should score: ok, dropped, or the reason of its error.",
            (*VERSION, "outcome"),
        )
        self._shadow_dropped = families.counter(
            "rm_shadow_dropped_total",
            "Completions that a shadow did not score, or whose scores were not kept, by why.",
            ("reason",),
        )
        self._shadow_pearson = families.gauge(
            "rm_shadow_pearson", "Correlation of a shadow's scores with those that callers got, of late.", VERSION
        )
        self._shadow_shift_std = families.gauge(
            "rm_shadow_shift_std",
            "How much higher a shadow scores, of late, in standard deviations of the scores that callers got.",
            VERSION,
        )

    def recent_scores(self, key: VersionKey, mean: float, std: float, calibrated_mean: float | None) -> None:
        """What a version's raw scores are like of late; ``calibrated_mean`` None: it has no calibration."""
        labels = label_values(key)
        self._mean.labels(*labels).set(mean)
        self._std.labels(*labels).set(std)
        if calibrated_mean is not None:
            self._calibrated_mean.labels(*labels).set(calibrated_mean)
            self._calibrated.add(key)
        elif key in self._calibrated:  # a backup was restored in which it had none
            self._calibrated.remove(key)
            with suppress(KeyError):  # it was unloaded meanwhile
                self._calibrated_mean.remove(*labels)

    def scores_logged(self, outcome: str, num_items: int) -> None:
        """``num_items`` were ``written`` to the score log, or ``dropped``."""
        self._logged.labels(outcome).inc(num_items)

    def shadow_items(self, key: VersionKey, outcome: str, num_items: int) -> None:
        """``num_items`` completions of a shadow came to this: ok, or an error's reason."""
        self._shadow_items.labels(*label_values(key), outcome).inc(num_items)

    def shadow_dropped(self, key: VersionKey, reason: str, num_items: int) -> None:
        """``num_items`` completions were not scored by a shadow."""
        self._shadow_items.labels(*label_values(key), "dropped").inc(num_items)
        self._shadow_dropped.labels(reason).inc(num_items)

    def shadow_pair_lost(self) -> None:
        """A pair of scores was not kept: too many wait for the catalog."""
        self._shadow_dropped.labels("buffer_full").inc()

    def shadow_agreement(self, key: VersionKey, pearson: float | None, shift_std: float | None) -> None:
        """How a shadow agrees of late; None: undefined, or it is no shadow any more. There is no sample then."""
        for gauge, value in ((self._shadow_pearson, pearson), (self._shadow_shift_std, shift_std)):
            if value is not None:
                gauge.labels(*label_values(key)).set(value)
                continue
            with suppress(KeyError):  # there may have been none before
                gauge.remove(*label_values(key))
