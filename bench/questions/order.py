"""Whether the order in which items come matters: random lengths against sorted ones."""

from __future__ import annotations

from bench import models
from bench.load import closed
from bench.measurement import Bench, make_calls, speed
from bench.service import Service
from bench.statistics import median_ratio
from bench.workload import Item, in_calls, items

CALLERS, ITEMS = 16, 8
POOL = 16 * 8 * 4


def run(bench: Bench) -> None:
    """The same items through the same server, in both orders, in turns."""
    model = models.encoder()
    pool = items(model.vocabulary, POOL, seed=6)
    orders: dict[str, list[Item]] = {"random": pool, "sorted": sorted(pool, key=lambda item: item.num_tokens)}
    speeds: dict[str, list[float]] = {name: [] for name in orders}
    with Service(workers=1, threads=bench.cores) as service:
        selector = service.deploy(model.name, model.folder, "fp32")
        for number in range(bench.rounds):
            for what, ordered in orders.items():
                calls = make_calls(selector, in_calls(ordered, ITEMS))
                # One after the other, so that callers are at the same place of the order at the same time.
                num_callers = bench.callers(CALLERS)
                callers = [calls[start::num_callers] for start in range(num_callers)]
                answers = closed(service.address, callers, warm_up_s=bench.warm_up_s, seconds=bench.seconds(8))
                cells = speed(answers)
                bench.row(round=number, what=what, **cells)
                speeds[what].append(cells["tokens_per_s"])
    bench.figure("random_over_sorted", median_ratio(speeds["random"], speeds["sorted"]))
