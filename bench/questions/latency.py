"""How long one caller with one item waits, against transformers' own forward in process."""

from __future__ import annotations

from bench import models
from bench.load import waiting
from bench.measurement import Bench, make_calls
from bench.offline import Offline
from bench.service import Service
from bench.statistics import median, percentile
from bench.workload import in_calls, items

PLANNED_S = 35
ITEMS = 100


def run(bench: Bench) -> None:
    """Both score the same texts in the same order, in blocks that take turns; both include tokenisation."""
    model = models.encoder()
    pool = items(model.vocabulary, 20 if bench.quick else ITEMS, seed=4)
    ratios = []
    with (
        Service() as service,
        Offline(workers=1, threads=bench.cores, as_served=False) as offline,
    ):
        calls = make_calls(service.deploy(model.name, model.folder, "fp32"), in_calls(pool, 1))
        offline.load("bare", model.folder, "bare", "fp32", pool)
        waiting(service.address, calls, seconds=1)
        for number in range(bench.rounds):
            bare = offline.step_seconds("bare", bench.seconds(4))
            ours = waiting(service.address, calls, seconds=bench.seconds(4))
            for what, seconds in (("bare forward", bare), ("service", ours)):
                cells = {f"p{share}_ms": round(1000 * percentile(seconds, share / 100), 2) for share in (50, 95, 99)}
                bench.row(round=number, what=what, calls=len(seconds), **cells)
            ratios.append(median(ours) / median(bare))
    bench.figure("single_item_p50_over_bare_forward", median(ratios))
