"""What a call costs beside the forward pass: a model that costs nothing, 8 items as token ids, 1 caller."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from grpc_health.v1 import health_pb2
from rm_api.v1 import scoring_pb2

from bench import models
from bench.measurement import Bench
from bench.service import Service
from bench.statistics import median, percentile
from bench.workload import lengths

PLANNED_S = 10
ITEMS = 8


def run(bench: Bench) -> None:
    """Calls of scores and calls of the health check take turns; the server says where its own time went."""
    num_calls = 200 if bench.quick else 1000
    rng = np.random.default_rng(3)
    with Service() as service:
        selector = service.deploy("free", models.rules())
        requests = [_request(rng, selector) for _ in range(32)]
        empty = health_pb2.HealthCheckRequest()
        timings: list[scoring_pb2.Timings] = []

        def score() -> None:
            timings.append(service.scoring.Score(requests[len(timings) % 32], timeout=30).timings)

        def check() -> None:
            service.health.Check(empty, timeout=30)

        timed(score, 50)
        timings.clear()
        totals, empties = [], []
        for _ in range(10):
            totals += timed(score, num_calls // 10)
            empties += timed(check, num_calls // 10)
    bench.row(what="a call, at its caller", calls=num_calls, **_ms(totals))
    bench.row(what="an empty call (health check)", calls=num_calls, **_ms(empties))
    for name in ("total", "tokenize", "queue", "compute"):
        cells = _ms([getattr(timing, f"{name}_seconds") for timing in timings])
        bench.row(what=f"in the server: {name}", calls=num_calls, **cells)
    rest = [
        timing.total_seconds - timing.tokenize_seconds - timing.queue_seconds - timing.compute_seconds
        for timing in timings
    ]
    bench.row(what="in the server: pipe to the worker and back, answering", calls=num_calls, **_ms(rest))
    bench.figure("overhead_p50_ms", 1000 * median(totals))


def timed(call: Callable[[], None], count: int) -> list[float]:
    """Seconds of each of ``count`` calls, one after the other."""
    found = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


def _request(rng: np.random.Generator, selector: str) -> scoring_pb2.ScoreRequest:
    request = scoring_pb2.ScoreRequest(model=selector)
    request.options.bypass_cache = True
    for length in lengths(rng, ITEMS, 512):
        ids = rng.integers(30_000, size=length).tolist()
        group = request.groups.add()
        group.prompt.token_ids.ids.extend(ids[: length // 3])
        group.completions.add().token_ids.ids.extend(ids[length // 3 :])
    return request


def _ms(seconds: list[float]) -> dict[str, float]:
    return {
        f"{name}_ms": round(1000 * percentile(seconds, share), 3)
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    }
