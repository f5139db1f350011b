"""How long a health check takes while 16 callers keep the service busy."""

from __future__ import annotations

import threading
import time

from grpc_health.v1 import health_pb2

from bench import models
from bench.load import closed
from bench.measurement import Bench, for_callers, speed
from bench.service import Service
from bench.statistics import percentile

PLANNED_S = 35
CALLERS, ITEMS = 16, 8
PAUSE_S = 0.02


def run(bench: Bench) -> None:
    """A thread asks on a connection of its own, every 20 ms; once with small calls, once with large ones."""
    model = models.encoder()
    worst = 0.0
    with Service() as service:
        selector = service.deploy(model.name, model.folder, "fp32")
        for callers, items_per_call in ((bench.callers(CALLERS), ITEMS), (bench.callers(4), 64)):
            calls = for_callers(model, selector, callers=callers, items_per_call=items_per_call)
            with Prober(service) as prober:
                answers = closed(service.address, calls, warm_up_s=bench.warm_up_s, seconds=bench.seconds(10))
            p50, p99 = (1000 * percentile(prober.seconds, share) for share in (0.5, 0.99))
            cells = {"checks": len(prober.seconds), "health_p50_ms": round(p50, 2), "health_p99_ms": round(p99, 2)}
            bench.row(callers=callers, items=items_per_call, **cells, **speed(answers))
            worst = max(worst, p99)
    bench.figure("health_p99_ms", worst)


class Prober:
    """Health checks in a thread while a block runs. ``seconds``: of each."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._probe)
        self.seconds: list[float] = []

    def __enter__(self) -> Prober:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _probe(self) -> None:
        request = health_pb2.HealthCheckRequest()
        while not self._is_over.wait(PAUSE_S):
            start = time.perf_counter()
            self._service.health.Check(request, timeout=30)
            self.seconds.append(time.perf_counter() - start)
