"""Whether the service keeps memory: its resident size after 200 requests and after 2 000."""

from __future__ import annotations

from itertools import pairwise

from bench import models
from bench.load import closed
from bench.measurement import Bench, make_calls
from bench.service import Service
from bench.workload import in_calls, items

PLANNED_S = 60
CALLERS = 4
LIMIT_S = 240.0


def run(bench: Bench) -> None:
    """No two requests are alike, so all pass through cache and forward; of one item each, as lengths come."""
    model = models.encoder()
    early, step, late = (20, 40, 100) if bench.quick else (200, 600, 2000)
    pool = items(model.vocabulary, late, seed=7)
    with Service() as service:
        selector = service.deploy(model.name, model.folder, "fp32")
        calls = make_calls(selector, in_calls(pool, 1), use_cache=True)
        sizes: dict[int, int] = {}
        marks = (0, early, *range(early + step, late + 1, step))
        for start, end in pairwise(marks):
            callers = [calls[start:end][number::CALLERS] for number in range(CALLERS)]
            closed(service.address, callers, warm_up_s=0, seconds=LIMIT_S, repeat=False)
            sizes[end] = service.resident_bytes()
    for requests, size in sizes.items():
        bench.row(requests=requests, resident_mib=round(size / 2**20, 1))
    bench.figure("memory_growth", sizes[late] / sizes[early] - 1)
