"""What bit-identical scores cost: the same calls to a server with --deterministic and to one without."""

from __future__ import annotations

from contextlib import ExitStack

from bench import models
from bench.load import SCORE_METHOD, Call, closed
from bench.measurement import Bench, for_callers, make_calls, speed
from bench.service import Service, scores_of
from bench.statistics import median_ratio
from bench.workload import Item, in_calls, items

PLANNED_S = 60
CALLERS, ITEMS = 16, 8
WAYS = {"as usual": False, "deterministic": True}


def run(bench: Bench) -> None:
    """16 callers with 8 items each, in fp32 and bf16, in turns; the price is how many times fewer tokens/s come out.

    Also: the same items in calls of 8, and in calls of 3 in the opposite order, must give the same bits.
    """
    model = models.encoder()
    pool = items(model.vocabulary, 48, seed=15)
    speeds: dict[tuple[str, str], list[float]] = {}
    arms: list[tuple[str, str, Service, list[list[Call]]]] = []
    with ExitStack() as stack:
        for what, is_deterministic in WAYS.items():
            service = stack.enter_context(Service(**{"engine.deterministic": str(is_deterministic).lower()}))
            for precision in ("fp32", "bf16"):
                selector = service.deploy(f"{model.name}-{precision}", model.folder, precision)
                calls = for_callers(model, selector, callers=bench.callers(CALLERS), items_per_call=ITEMS)
                arms.append((precision, what, service, calls))
                same = _scored(service, selector, pool, 8) == _scored(service, selector, pool[::-1], 3)
                bench.row(precision=precision, what=what, equal_bits="yes" if same else "no")
                if is_deterministic and not same:
                    raise RuntimeError(f"Scores in {precision} depend on the batch, and must not.")
        for number in range(bench.rounds):
            for precision, what, service, calls in arms:
                answers = closed(service.address, calls, warm_up_s=bench.warm_up_s, seconds=bench.seconds(2))
                cells = speed(answers)
                bench.row(round=number, precision=precision, what=what, **cells)
                speeds.setdefault((precision, what), []).append(cells["tokens_per_s"])
    for precision in ("fp32", "bf16"):
        price = median_ratio(speeds[precision, "as usual"], speeds[precision, "deterministic"])
        bench.figure(f"deterministic_price_{precision}", price)


def _scored(service: Service, selector: str, found: list[Item], size: int) -> dict[Item, float]:
    send = service.channel.unary_unary(SCORE_METHOD)
    scores: dict[Item, float] = {}
    parts = in_calls(found, size)
    for part, call in zip(parts, make_calls(selector, parts), strict=True):
        scores.update(zip(part, scores_of(send(call.request, timeout=60)), strict=True))
    return scores
