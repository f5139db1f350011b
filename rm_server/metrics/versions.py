"""What is counted of versions: loads and unloads, what they take, and when a version's series go."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rm_server.metrics.families import OK, VERSION, Families, VersionKey, label_values

# A cold load takes minutes.
LOAD_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

KEEP_UNLOADED_S = 3600.0
"""A version that is out of memory for so long is shown no more. Everybody has scraped its last counts by then, and who
deploys every night has only the versions that serve in his graphs, not all that there ever were."""


class VersionMetrics:
    """Loads, memory, labels. ``clock``: monotonic, in seconds."""

    def __init__(self, families: Families, clock: Callable[[], float]) -> None:
        self._families = families
        self._clock = clock
        self._loaded: set[VersionKey] = set()
        self._unloaded_at: dict[VersionKey, float] = {}
        self._info = families.gauge(
            "rm_version_loaded_info",
            "1 for each loaded version, with what it is.",
            (*VERSION, "digest", "precision"),
            is_of_loaded_versions=True,
        )
        self._memory = families.gauge(
            "rm_version_memory_bytes",
            "Memory of a loaded version, all workers together.",
            VERSION,
            is_of_loaded_versions=True,
        )
        self._load_seconds = families.histogram(
            "rm_load_seconds",
            "Loading, warming up and checking a version that then served.",
            ("model",),
            LOAD_BUCKETS_S,
        )
        self._loads = families.counter(
            "rm_loads_total", "Attempts to load, by what became of them.", ("model", "reason")
        )
        self._unloads = families.counter("rm_unloads_total", "Versions taken out of memory.", ("model",))
        self._pages = families.counter(
            "rm_pages_total",
            "Versions that made room for others (out), or came back with a request (in).",
            ("model", "direction"),
        )
        self._label_moves = families.counter("rm_label_moves_total", "Labels set or removed.", ("model",))
        self._missing = families.gauge(
            "rm_versions_missing", "Versions that should be loaded here and are not, by state.", ("state",)
        )

    def version_loaded(
        self, key: VersionKey, *, digest: str, precision: str, memory_bytes: int, load_seconds: float
    ) -> None:
        """A version serves from now on."""
        model, version = label_values(key)
        self._loaded.add(key)
        self._unloaded_at.pop(key, None)
        self._loads.labels(model, OK).inc()
        self._load_seconds.labels(model).observe(load_seconds)
        self._info.labels(model, version, digest, precision).set(1)
        self._memory.labels(model, version).set(memory_bytes)

    def memory_changed(self, bytes_by_version: Mapping[VersionKey, int]) -> None:
        """What the loaded versions take now: what several share is counted with another one when the first has gone."""
        for key, num_bytes in bytes_by_version.items():
            if key in self._loaded:
                self._memory.labels(*label_values(key)).set(num_bytes)

    def version_paged(self, key: VersionKey, direction: str) -> None:
        """A version made room for another one (``out``), or came back with a request (``in``)."""
        self._pages.labels(key[0], direction).inc()

    def load_failed(self, key: VersionKey, reason: str) -> None:
        """A version was refused, or could not be loaded."""
        self._loads.labels(key[0], reason).inc()

    def version_unloaded(self, key: VersionKey) -> None:
        """A version is out of memory; its gauges go with it, what it counted an hour later."""
        self._unloads.labels(key[0]).inc()
        self._loaded.discard(key)
        self._unloaded_at[key] = self._clock()
        self._families.version_unloaded(key)

    def version_forgotten(self, key: VersionKey) -> None:
        """A version was deleted and is out of memory: nothing of it is shown any more."""
        self._unloaded_at.pop(key, None)
        self._families.version_forgotten(key)

    def forget_long_unloaded(self) -> None:
        """Lets go of the versions that were unloaded ``KEEP_UNLOADED_S`` ago and did not come back."""
        now = self._clock()
        for key in [key for key, since in self._unloaded_at.items() if now - since >= KEEP_UNLOADED_S]:
            self.version_forgotten(key)

    def versions_missing(self, num_by_state: Mapping[str, int]) -> None:
        """How many versions should be loaded and are not; a state that is not named has none."""
        for state in ("REGISTERED", "LOADING", "DRAINING", "FAILED"):
            self._missing.labels(state).set(num_by_state.get(state, 0))

    def label_moved(self, model: str) -> None:
        """A label was set or removed."""
        self._label_moves.labels(model).inc()
