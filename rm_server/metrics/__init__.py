"""Every metric of the server, under `rm_`; a training run is never a label, for there is no end of runs."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder

from rm_server.metrics.engine import EngineMetrics
from rm_server.metrics.families import OK, Families, VersionKey
from rm_server.metrics.requests import RequestMetrics
from rm_server.metrics.runs import RunMetrics
from rm_server.metrics.scores import ScoreMetrics
from rm_server.metrics.server import ServerMetrics
from rm_server.metrics.versions import VersionMetrics

__all__ = ["OK", "Metrics", "VersionKey"]


class Metrics(RequestMetrics, EngineMetrics, VersionMetrics, RunMetrics, ScoreMetrics, ServerMetrics):
    """The server's metrics, in a registry of their own, so that two servers fit in one process.

    ``key`` is (model, version) everywhere. Only names of models in the catalog become labels: what a caller
    invents does not. ``clock``: monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        families = Families()
        self.registry = families.registry
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        RequestMetrics.__init__(self, families)
        EngineMetrics.__init__(self, families)
        VersionMetrics.__init__(self, families, clock)
        RunMetrics.__init__(self, families)
        ScoreMetrics.__init__(self, families)
        ServerMetrics.__init__(self, families)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The text for a scraper that sent this Accept header, and its content type.

        For a thread of its own: of many versions it takes a second. All else is called on the event loop.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type
