"""What is counted of the server itself: whether it is ready, its disk, its database, its files, its event loop."""

from __future__ import annotations

from importlib.metadata import version as package_version

from rm_server.metrics.families import OK, Families


class ServerMetrics:
    """One value for the whole server, or one a file that it reads again."""

    def __init__(self, families: Families) -> None:
        self._ready = families.gauge("rm_ready", "1 while callers are welcome, as /readyz says.")
        self._home_free = families.gauge(
            "rm_home_free_bytes", "Room on the disk of the home, where artifacts are put and fetched to."
        )
        self._draining = families.gauge("rm_draining", "1 once the server takes no new work.")
        self._catalog_reachable = families.gauge("rm_catalog_reachable", "1 while the catalog's database answers.")
        self._reloads = families.counter(
            "rm_reloads_total",
            "Files read again while serving; reason is ok, or refused: the old ones stayed in use.",
            ("files", "reason"),
        )
        self._files_refused = families.gauge(
            "rm_files_refused",
            "1 while the files on disk are not those in use, because they cannot be used.",
            ("files",),
        )
        self._loop_lag = families.histogram("rm_event_loop_lag_seconds", "How late the event loop woke a timer.")
        build = families.gauge("rm_build_info", "1, with the version of the package.", ("version",))
        build.labels(package_version("rm-service")).set(1)

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
