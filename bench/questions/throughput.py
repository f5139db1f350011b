"""How much of the offline ceiling 16 callers with 8 items each get."""

from __future__ import annotations

from contextlib import ExitStack

from bench import models
from bench.load import closed
from bench.measurement import Bench, for_callers, speed
from bench.offline import Offline
from bench.service import Service
from bench.statistics import median, median_ratio
from bench.workload import items

PLANNED_S = 150
ROUNDS = 4
CALLERS, ITEMS = 16, 8


def run(bench: Bench) -> None:
    """The ceiling and the service take turns, with the same workers x threads, in fp32 and bf16."""
    model = models.encoder()
    pool = items(model.vocabulary, 600, seed=2)
    settings = [(1, bench.cores)] if bench.quick or bench.cores == 1 else [(1, bench.cores), (bench.cores, 1)]
    found: dict[tuple[str, int, str], list[float]] = {}
    with ExitStack() as stack:
        arms = []
        for workers, threads in settings:
            service = stack.enter_context(Service(workers=workers, threads=threads))
            offline = stack.enter_context(Offline(workers=workers, threads=threads, as_served=True))
            for precision in ("fp32", "bf16"):
                selector = service.deploy(f"{model.name}-{precision}", model.folder, precision)
                offline.load(precision, model.folder, "packed", precision, pool)
                calls = for_callers(model, selector, callers=bench.callers(CALLERS), items_per_call=ITEMS)
                arms.append((workers, threads, precision, service, offline, calls))
        # Many short rounds: other users of the machine come and go within seconds, and the median leaves them out.
        for number in range(1 if bench.quick else ROUNDS):
            for workers, threads, precision, service, offline, calls in arms:
                label = {"round": number, "workers": workers, "threads": threads, "precision": precision}
                ceiling = offline.tokens_per_s(precision, bench.seconds(2))
                bench.row(**label, what="ceiling", tokens_per_s=round(ceiling, 1))
                cells = speed(closed(service.address, calls, warm_up_s=bench.warm_up_s, seconds=bench.seconds(3)))
                bench.row(**label, what="service", **cells)
                found.setdefault(("ceiling", workers, precision), []).append(ceiling)
                found.setdefault(("service", workers, precision), []).append(cells["tokens_per_s"])
    ratios = []
    for workers, threads in settings:
        for precision in ("fp32", "bf16"):
            service_s, ceiling_s = found["service", workers, precision], found["ceiling", workers, precision]
            ratios.append(median_ratio(service_s, ceiling_s))
            bench.row(
                what="median",
                workers=workers,
                threads=threads,
                precision=precision,
                tokens_per_s=median(service_s),
                ceiling_tokens_per_s=median(ceiling_s),
                service_over_ceiling=round(ratios[-1], 4),
            )
    # The worst of them, so that one number keeps the promise for all.
    bench.figure("service_over_ceiling", min(ratios))
