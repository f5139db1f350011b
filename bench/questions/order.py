"""Whether the order in which items come matters: random lengths against sorted ones."""

from __future__ import annotations

from bench import models
from bench.load import closed
from bench.measurement import Bench, make_calls
from bench.service import Service
from bench.statistics import median_ratio
from bench.workload import Item, in_calls, items

PLANNED_S = 65
CALLERS, ITEMS = 16, 8
POOL = 384
LIMIT_S = 120.0


def run(bench: Bench) -> None:
    """All of the same items once, in both orders, in turns: a part of a sorted order would be another workload."""
    model = models.encoder()
    pool = items(model.vocabulary, 64 if bench.quick else POOL, seed=6)
    orders: dict[str, list[Item]] = {"random": pool, "sorted": sorted(pool, key=lambda item: item.num_tokens)}
    speeds: dict[str, list[float]] = {name: [] for name in orders}
    num_callers = bench.callers(CALLERS)
    num_tokens = sum(item.num_tokens for item in pool)
    with Service() as service:
        selector = service.deploy(model.name, model.folder, "fp32")
        for number in range(bench.rounds):
            for what, ordered in orders.items():
                calls = make_calls(selector, in_calls(ordered, ITEMS))
                # Dealt one by one, so that all callers are at the same place of the order.
                callers = [calls[start::num_callers] for start in range(num_callers)]
                answers = closed(service.address, callers, warm_up_s=0, seconds=LIMIT_S, repeat=False)
                took_s = answers[-1].end - min(answer.due for answer in answers)
                speeds[what].append(num_tokens / took_s)
                bench.row(round=number, what=what, items=len(pool), tokens_per_s=round(speeds[what][-1], 1))
    bench.figure("random_over_sorted", median_ratio(speeds["random"], speeds["sorted"]))
