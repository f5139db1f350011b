"""Whether loading and unloading keeps memory: the resident size before and after hundreds of swaps."""

from __future__ import annotations

from bench import models
from bench.load import SCORE_METHOD
from bench.measurement import Bench, make_calls
from bench.service import Service, scores_of
from bench.workload import in_calls, items

MODEL = "cycles"
WARM_UP_CYCLES = 20
"""Until allocators, imports and caches have what they need."""


def run(bench: Bench) -> None:
    """Each cycle loads a version, lets the label and a call find it, and unloads the one before."""
    num_cycles = 20 if bench.quick else 500
    warm_up = 5 if bench.quick else WARM_UP_CYCLES
    some = items(models.small_vocabulary(), 8, seed=3)
    with Service(workers=1, threads=1) as service:
        for seed in (0, 1):
            service.deploy(MODEL, models.small(seed), "fp32")
        service.set_label(MODEL, "stable", 1)
        service.unload(f"{MODEL}@2")
        send = service.channel.unary_unary(SCORE_METHOD)
        call = make_calls(f"{MODEL}@stable", in_calls(some, 8))[0]
        sizes: dict[int, int] = {}
        for cycle in range(warm_up + num_cycles + 1):
            if cycle >= warm_up and (cycle - warm_up) % max(1, num_cycles // 10) == 0:
                sizes[cycle - warm_up] = service.resident_bytes()
            service.set_label(MODEL, "stable", 2 - cycle % 2, unload_previous=True)
            scores_of(send(call.request, timeout=60))
    for cycle, size in sizes.items():
        bench.row(cycles=cycle, resident_mib=round(size / 2**20, 1))
    bench.figure("load_cycles", num_cycles)
    bench.figure("memory_growth_mb", (sizes[num_cycles] - sizes[0]) / 1e6)
