"""Every metric of the server, under `rm_`; a training run is never a label, for there is no end of runs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version as package_version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder

VersionKey = tuple[str, int]
"""(model, version)."""

# Scoring takes milliseconds, a cold load minutes.
LATENCY_BUCKETS_S = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
LOAD_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
ITEM_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TOKEN_BUCKETS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)

OK = "ok"
"""The value of the label ``reason`` where nothing failed; otherwise it is the error's reason in lower case."""

_VERSION = ("model", "version")


class Metrics:
    """The server's metrics, in a registry of their own, so that two servers fit in one process.

    ``key`` is (model, version) everywhere. Only names of models in the catalog become labels: what a caller
    invents does not.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

        # Requests, as callers see them.
        self._requests = Counter(
            "rm_requests_total",
            "Calls answered, by what became of them; model and version are empty where none was chosen.",
            ("method", *_VERSION, "reason"),
            registry=registry,
        )
        self._request_seconds = Histogram(
            "rm_request_seconds",
            "From the arrival of a call to its answer.",
            ("method", *_VERSION),
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self._in_flight = Gauge("rm_requests_in_flight", "Calls under way.", registry=registry)
        self._items = Counter(
            "rm_items_total",
            "Completions answered, with a score or an error.",
            (*_VERSION, "reason"),
            registry=registry,
        )
        self._tokens = Counter("rm_tokens_total", "Tokens scored.", _VERSION, registry=registry)
        self._truncated = Counter(
            "rm_truncated_items_total", "Completions scored after tokens were cut off.", _VERSION, registry=registry
        )

        self._access_refusals = Counter(
            "rm_auth_refusals_total",
            "Calls refused because of who called: unauthenticated, permission_denied or rate_limited.",
            ("reason",),
            registry=registry,
        )
        for reason in ("unauthenticated", "permission_denied", "rate_limited"):
            self._access_refusals.labels(reason)  # 0 from the start, so that the first one is an increase

        # The engine.
        self._tokenize_seconds = Histogram(
            "rm_tokenize_seconds",
            "Turning the content of one call into tokens.",
            _VERSION,
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self._queue_wait_seconds = Histogram(
            "rm_queue_wait_seconds",
            "An item's wait for its turn.",
            _VERSION,
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self._compute_seconds = Histogram(
            "rm_compute_seconds", "One batch's forward pass.", _VERSION, buckets=LATENCY_BUCKETS_S, registry=registry
        )
        self._batch_items = Histogram(
            "rm_batch_items", "Items of one batch.", _VERSION, buckets=ITEM_BUCKETS, registry=registry
        )
        self._batch_tokens = Histogram(
            "rm_batch_tokens", "Tokens of one batch.", _VERSION, buckets=TOKEN_BUCKETS, registry=registry
        )
        self._queue_items = Gauge("rm_queue_items", "Items that wait for a turn.", registry=registry)
        self._queue_tokens = Gauge("rm_queue_tokens", "Tokens of the items that wait for a turn.", registry=registry)
        self._dropped = Counter(
            "rm_dropped_items_total",
            "Items dropped before they were computed: the deadline had passed, or the caller was gone.",
            (*_VERSION, "reason"),
            registry=registry,
        )
        self._worker_restarts = Counter("rm_worker_restarts_total", "Worker processes started anew.", registry=registry)
        self._cache_hits = Counter(
            "rm_cache_hits_total", "Items answered from the result cache.", _VERSION, registry=registry
        )
        self._cache_misses = Counter(
            "rm_cache_misses_total", "Items that the result cache did not know.", _VERSION, registry=registry
        )

        # Versions.
        self._version_info = Gauge(
            "rm_version_loaded_info",
            "1 for each loaded version, with what it is.",
            (*_VERSION, "digest", "precision"),
            registry=registry,
        )
        self._version_memory = Gauge(
            "rm_version_memory_bytes", "Memory of a loaded version, all workers together.", _VERSION, registry=registry
        )
        self._version_labels: dict[VersionKey, tuple[str, str]] = {}
        self._load_seconds = Histogram(
            "rm_load_seconds",
            "Loading, warming up and checking a version that then served.",
            ("model",),
            buckets=LOAD_BUCKETS_S,
            registry=registry,
        )
        self._loads = Counter(
            "rm_loads_total", "Attempts to load, by what became of them.", ("model", "reason"), registry=registry
        )
        self._unloads = Counter("rm_unloads_total", "Versions taken out of memory.", ("model",), registry=registry)
        self._pages = Counter(
            "rm_pages_total",
            "Versions that made room for others (out), or came back with a request (in).",
            ("model", "direction"),
            registry=registry,
        )
        self._label_moves = Counter("rm_label_moves_total", "Labels set or removed.", ("model",), registry=registry)
        self._missing_versions = Gauge(
            "rm_versions_missing",
            "Versions that should be loaded here and are not, by state.",
            ("state",),
            registry=registry,
        )

        # Scores. A mean on the common scale says how far the texts of now are from those it was calibrated on.
        self._score_mean = Gauge(
            "rm_score_mean", "Mean of a version's raw scores, the last 1000 or so.", _VERSION, registry=registry
        )
        self._score_std = Gauge(
            "rm_score_std",
            "Standard deviation of a version's raw scores, the last 1000 or so.",
            _VERSION,
            registry=registry,
        )
        self._score_calibrated_mean = Gauge(
            "rm_score_calibrated_mean",
            "The mean on the model's common scale, for versions with a calibration.",
            _VERSION,
            registry=registry,
        )

        self._logged_scores = Counter(
            "rm_score_log_items_total",
            "Scored items for the score log: written, or dropped because too much waits for the disk.",
            ("outcome",),
            registry=registry,
        )

        # Shadows; the version is the shadow's.
        self._shadow_items = Counter(
            "rm_shadow_items_total",
            "Completions that a shadow should score: ok, dropped, or the reason of its error.",
            (*_VERSION, "outcome"),
            registry=registry,
        )
        self._shadow_dropped = Counter(
            "rm_shadow_dropped_total",
            "Completions that a shadow did not score, or whose scores were not kept, by why.",
            ("reason",),
            registry=registry,
        )
        self._shadow_pearson = Gauge(
            "rm_shadow_pearson",
            "Correlation of a shadow's scores with those that callers got, of late.",
            _VERSION,
            registry=registry,
        )
        self._shadow_shift_std = Gauge(
            "rm_shadow_shift_std",
            "How much higher a shadow scores, of late, in standard deviations of the scores that callers got.",
            _VERSION,
            registry=registry,
        )

        # The server.
        self._ready = Gauge("rm_ready", "1 while callers are welcome, as /readyz says.", registry=registry)
        self._home_free = Gauge(
            "rm_home_free_bytes",
            "Room on the disk of the home, where artifacts are put and fetched to.",
            registry=registry,
        )
        self._draining = Gauge("rm_draining", "1 once the server takes no new work.", registry=registry)
        self._catalog_reachable = Gauge(
            "rm_catalog_reachable", "1 while the catalog's database answers.", registry=registry
        )
        self._reloads = Counter(
            "rm_reloads_total",
            "Files read again while serving; reason is ok, or refused: the old ones stayed in use.",
            ("files", "reason"),
            registry=registry,
        )
        self._files_refused = Gauge(
            "rm_files_refused",
            "1 while the files on disk are not those in use, because they cannot be used.",
            ("files",),
            registry=registry,
        )
        self._loop_lag = Histogram(
            "rm_event_loop_lag_seconds",
            "How late the event loop woke a timer.",
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        Gauge("rm_build_info", "1, with the version of the package.", ("version",), registry=registry).labels(
            package_version("rm-service")
        ).set(1)

        # What every call touches: looking a child up by its labels each time costs more than counting.
        self._requests_of = cache(self._requests.labels)
        self._request_seconds_of = cache(self._request_seconds.labels)
        self._items_of = cache(self._items.labels)
        self._tokens_of = cache(self._tokens.labels)
        self._tokenize_seconds_of = cache(self._tokenize_seconds.labels)
        self._queue_wait_seconds_of = cache(self._queue_wait_seconds.labels)
        self._compute_seconds_of = cache(self._compute_seconds.labels)
        self._batch_items_of = cache(self._batch_items.labels)
        self._batch_tokens_of = cache(self._batch_tokens.labels)
        self._cache_hits_of = cache(self._cache_hits.labels)
        self._cache_misses_of = cache(self._cache_misses.labels)
        self._remembered = (
            *(self._requests_of, self._request_seconds_of, self._items_of, self._tokens_of),
            *(self._tokenize_seconds_of, self._queue_wait_seconds_of, self._compute_seconds_of),
            *(self._batch_items_of, self._batch_tokens_of, self._cache_hits_of, self._cache_misses_of),
        )
        self._per_version = (
            *(self._requests, self._request_seconds, self._items, self._tokens, self._truncated),
            *(self._tokenize_seconds, self._queue_wait_seconds, self._compute_seconds),
            *(self._batch_items, self._batch_tokens, self._dropped, self._cache_hits, self._cache_misses),
            *(self._score_mean, self._score_std, self._score_calibrated_mean),
            *(self._shadow_items, self._shadow_pearson, self._shadow_shift_std),
        )
        """Has a series for each version, which goes when the version is deleted; a model's stay, they are few."""

    # --- requests ---

    def request_started(self) -> None:
        """A call arrived."""
        self._in_flight.inc()

    def request_finished(self, method: str, key: VersionKey | None, reason: str, seconds: float) -> None:
        """A call was answered; ``key`` None where no version was chosen."""
        model, version = _labels(key)
        self._in_flight.dec()
        self._requests_of(method, model, version, reason).inc()
        self._request_seconds_of(method, model, version).observe(seconds)

    def items_finished(self, key: VersionKey, reason: str, num_items: int) -> None:
        """``num_items`` completions of one call were answered alike."""
        self._items_of(*_labels(key), reason).inc(num_items)

    def tokens_scored(self, key: VersionKey, num_tokens: int, num_truncated: int) -> None:
        """What one call's scored items came to."""
        self._tokens_of(*_labels(key)).inc(num_tokens)
        if num_truncated:
            self._truncated.labels(*_labels(key)).inc(num_truncated)

    def access_refused(self, reason: str) -> None:
        """A caller was not let in, or not to what it asked for."""
        self._access_refusals.labels(reason).inc()

    # --- engine ---

    def tokenized(self, key: VersionKey, seconds: float) -> None:
        """One call's content became tokens."""
        self._tokenize_seconds_of(*_labels(key)).observe(seconds)

    def queue_waited(self, key: VersionKey, seconds: float) -> None:
        """An item got its turn."""
        self._queue_wait_seconds_of(*_labels(key)).observe(seconds)

    def batch_computed(self, key: VersionKey, num_items: int, num_tokens: int, seconds: float) -> None:
        """One forward pass is done."""
        labels = _labels(key)
        self._compute_seconds_of(*labels).observe(seconds)
        self._batch_items_of(*labels).observe(num_items)
        self._batch_tokens_of(*labels).observe(num_tokens)

    def queue_changed(self, num_items: int, num_tokens: int) -> None:
        """What waits now, over all versions."""
        self._queue_items.set(num_items)
        self._queue_tokens.set(num_tokens)

    def item_dropped(self, key: VersionKey, reason: str) -> None:
        """An item left the queue without being computed."""
        self._dropped.labels(*_labels(key), reason).inc()

    def worker_restarted(self) -> None:
        """A dead worker process was replaced."""
        self._worker_restarts.inc()

    def cache_asked(self, key: VersionKey, num_hits: int, num_misses: int) -> None:
        """The result cache was asked for the items of one call."""
        self._cache_hits_of(*_labels(key)).inc(num_hits)
        self._cache_misses_of(*_labels(key)).inc(num_misses)

    # --- versions ---

    def version_loaded(
        self, key: VersionKey, *, digest: str, precision: str, memory_bytes: int, load_seconds: float
    ) -> None:
        """A version serves from now on."""
        model, version = _labels(key)
        self._loads.labels(model, OK).inc()
        self._load_seconds.labels(model).observe(load_seconds)
        self._version_labels[key] = (digest, precision)
        self._version_info.labels(model, version, digest, precision).set(1)
        self._version_memory.labels(model, version).set(memory_bytes)

    def memory_changed(self, bytes_by_version: Mapping[VersionKey, int]) -> None:
        """What the loaded versions take now: what several share is counted with another one when the first has gone."""
        for key, num_bytes in bytes_by_version.items():
            if key in self._version_labels:
                self._version_memory.labels(*_labels(key)).set(num_bytes)

    def version_paged(self, key: VersionKey, direction: str) -> None:
        """A version made room for another one (``out``), or came back with a request (``in``)."""
        self._pages.labels(key[0], direction).inc()

    def load_failed(self, key: VersionKey, reason: str) -> None:
        """A version was refused, or could not be loaded."""
        self._loads.labels(key[0], reason).inc()

    def version_unloaded(self, key: VersionKey) -> None:
        """A version is out of memory; its gauges go with it."""
        model, version = _labels(key)
        self._unloads.labels(model).inc()
        for gauge in (self._score_mean, self._score_std, self._score_calibrated_mean):
            _remove(gauge, model, version)
        if (labels := self._version_labels.pop(key, None)) is not None:
            self._version_info.remove(model, version, *labels)
            self._version_memory.remove(model, version)

    def version_forgotten(self, key: VersionKey) -> None:
        """A version was deleted and is out of memory: nothing of it is shown any more."""
        model, version = _labels(key)
        for metric in self._per_version:
            metric.remove_by_labels({"model": model, "version": version})
        for remembered in self._remembered:
            remembered.cache_clear()  # one entry cannot be taken out, and deleting is rare

    def versions_missing(self, num_by_state: Mapping[str, int]) -> None:
        """How many versions should be loaded and are not; a state that is not named has none."""
        for state in ("REGISTERED", "LOADING", "DRAINING", "FAILED"):
            self._missing_versions.labels(state).set(num_by_state.get(state, 0))

    # --- scores and shadows ---

    def recent_scores(self, key: VersionKey, mean: float, std: float, calibrated_mean: float | None) -> None:
        """What a version's raw scores are like of late; ``calibrated_mean`` None: it has no calibration."""
        self._score_mean.labels(*_labels(key)).set(mean)
        self._score_std.labels(*_labels(key)).set(std)
        if calibrated_mean is not None:
            self._score_calibrated_mean.labels(*_labels(key)).set(calibrated_mean)

    def scores_logged(self, outcome: str, num_items: int) -> None:
        """``num_items`` were ``written`` to the score log, or ``dropped``."""
        self._logged_scores.labels(outcome).inc(num_items)

    def shadow_items(self, key: VersionKey, outcome: str, num_items: int) -> None:
        """``num_items`` completions of a shadow came to this: ok, or an error's reason."""
        self._shadow_items.labels(*_labels(key), outcome).inc(num_items)

    def shadow_dropped(self, key: VersionKey, reason: str, num_items: int) -> None:
        """``num_items`` completions were not scored by a shadow."""
        self._shadow_items.labels(*_labels(key), "dropped").inc(num_items)
        self._shadow_dropped.labels(reason).inc(num_items)

    def shadow_pair_lost(self) -> None:
        """A pair of scores was not kept: too many wait for the catalog."""
        self._shadow_dropped.labels("buffer_full").inc()

    def shadow_agreement(self, key: VersionKey, pearson: float | None, shift_std: float | None) -> None:
        """How a shadow agrees of late; None: undefined, or it is no shadow any more. There is no sample then."""
        for gauge, value in ((self._shadow_pearson, pearson), (self._shadow_shift_std, shift_std)):
            if value is None:
                _remove(gauge, *_labels(key))
            else:
                gauge.labels(*_labels(key)).set(value)

    def label_moved(self, model: str) -> None:
        """A label was set or removed."""
        self._label_moves.labels(model).inc()

    # --- server ---

    def ready(self, is_ready: bool) -> None:
        """Whether callers are welcome."""
        self._ready.set(is_ready)

    def home_free(self, num_bytes: int) -> None:
        """Room left on the disk of the home."""
        self._home_free.set(num_bytes)

    def draining(self, is_draining: bool) -> None:
        """Whether the server refuses new work because it is going to stop."""
        self._draining.set(is_draining)

    def catalog_reachable(self, is_reachable: bool) -> None:
        """Whether the catalog's database answered the last time."""
        self._catalog_reachable.set(is_reachable)

    def files_reloaded(self, files: str, *, is_in_use: bool) -> None:
        """Tokens or certificates were read again. ``files``: ``tokens`` or ``tls``."""
        self._reloads.labels(files, OK if is_in_use else "refused").inc()
        self._files_refused.labels(files).set(not is_in_use)

    def loop_lagged(self, seconds: float) -> None:
        """How late a timer of the event loop was."""
        self._loop_lag.observe(seconds)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The text for a scraper that sent this Accept header, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


def _labels(key: VersionKey | None) -> tuple[str, str]:
    return ("", "") if key is None else (key[0], str(key[1]))


def _remove(gauge: Gauge, *labels: str) -> None:
    """Takes a sample away, if it is there."""
    with suppress(KeyError):
        gauge.remove(*labels)
