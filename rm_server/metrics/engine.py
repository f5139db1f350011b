"""What is counted of the engine: an item's way from text to batch, and what waits."""

from __future__ import annotations

from rm_server.metrics.families import VERSION, Families, VersionKey, label_values

ITEM_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TOKEN_BUCKETS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


class EngineMetrics:
    """Tokenising, queue, batches, workers and the result cache."""

    def __init__(self, families: Families) -> None:
        tokenize_seconds = families.histogram(
            "rm_tokenize_seconds", "Turning the content of one call into tokens.", VERSION
        )
        queue_wait_seconds = families.histogram(
            "rm_queue_wait_seconds", "The wait for a turn: once for each call in each batch.", VERSION
        )
        compute_seconds = families.histogram("rm_compute_seconds", "One batch's forward pass.", VERSION)
        batch_items = families.histogram("rm_batch_items", "Items of one batch.", VERSION, ITEM_BUCKETS)
        batch_tokens = families.histogram("rm_batch_tokens", "Tokens computed in one batch.", VERSION, TOKEN_BUCKETS)
        self._queue_items = families.gauge("rm_queue_items", "Items that wait for a turn.")
        self._queue_tokens = families.gauge("rm_queue_tokens", "Tokens to compute of the items that wait for a turn.")
        self._dropped = families.counter(
            "rm_dropped_items_total",
            "Items dropped before they were computed: the deadline had passed, or the caller was gone.",
            (*VERSION, "reason"),
        )
        self._worker_restarts = families.counter("rm_worker_restarts_total", "Worker processes started anew.")
        cache_hits = families.counter("rm_cache_hits_total", "Items answered from the result cache.", VERSION)
        cache_misses = families.counter("rm_cache_misses_total", "Items that the result cache did not know.", VERSION)
        self._tokenize_seconds_of = families.remembered(tokenize_seconds.labels)
        self._queue_wait_seconds_of = families.remembered(queue_wait_seconds.labels)
        self._compute_seconds_of = families.remembered(compute_seconds.labels)
        self._batch_items_of = families.remembered(batch_items.labels)
        self._batch_tokens_of = families.remembered(batch_tokens.labels)
        self._cache_hits_of = families.remembered(cache_hits.labels)
        self._cache_misses_of = families.remembered(cache_misses.labels)

    def tokenized(self, key: VersionKey, seconds: float) -> None:
        """One call's content became tokens."""
        self._tokenize_seconds_of(*label_values(key)).observe(seconds)

    def queue_waited(self, key: VersionKey, seconds: float) -> None:
        """The items of one call that are in a batch got their turn."""
        self._queue_wait_seconds_of(*label_values(key)).observe(seconds)

    def batch_computed(self, key: VersionKey, num_items: int, num_tokens: int, seconds: float) -> None:
        """One forward pass is done."""
        labels = label_values(key)
        self._compute_seconds_of(*labels).observe(seconds)
        self._batch_items_of(*labels).observe(num_items)
        self._batch_tokens_of(*labels).observe(num_tokens)

    def queue_changed(self, num_items: int, num_tokens: int) -> None:
        """What waits now, over all versions."""
        self._queue_items.set(num_items)
        self._queue_tokens.set(num_tokens)

    def item_dropped(self, key: VersionKey, reason: str) -> None:
        """An item left the queue without being computed."""
        self._dropped.labels(*label_values(key), reason).inc()

    def worker_restarted(self) -> None:
        """A dead worker process was replaced."""
        self._worker_restarts.inc()

    def cache_asked(self, key: VersionKey, num_hits: int, num_misses: int) -> None:
        """The result cache was asked for the items of one call."""
        self._cache_hits_of(*label_values(key)).inc(num_hits)
        self._cache_misses_of(*label_values(key)).inc(num_misses)
