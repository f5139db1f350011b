"""What it brings to compute a group's prompt once: the same items as groups and as strangers, on the small Llama."""

from __future__ import annotations

from collections.abc import Sequence

from bench import models
from bench.load import SCORE_METHOD, Call, closed
from bench.measurement import Bench, make_calls, speed
from bench.service import Service, scores_of
from bench.statistics import median_ratio
from bench.workload import Item, as_strangers, groups, token_ratio

PLANNED_S = 60
CALLERS = 4


def run(bench: Bench) -> None:
    """Groups and strangers take turns on one server; the speed-up is held against the tokens that sharing saves."""
    model = models.llama()
    grouped = groups(model.vocabulary, 8 if bench.quick else 64, seed=5)
    apart = as_strangers(grouped)
    seconds = bench.seconds(5.5)
    speeds: dict[str, list[float]] = {"groups": [], "strangers": []}
    with Service() as service:
        selector = service.deploy(model.name, model.folder, "fp32")
        arms = {"groups": _for_callers(bench, selector, grouped), "strangers": _for_callers(bench, selector, apart)}
        for number in range(bench.rounds):
            for what, calls in arms.items():
                cells = speed(closed(service.address, calls, warm_up_s=bench.warm_up_s, seconds=seconds))
                bench.row(round=number, what=what, **cells)
                speeds[what].append(cells["tokens_per_s"])
        difference = _difference(service, selector, grouped[:8], apart[:8])
    ratio = token_ratio(grouped)
    speed_up = median_ratio(speeds["groups"], speeds["strangers"])
    bench.row(
        what="groups over strangers", speed_up=round(speed_up, 3), token_ratio=round(ratio, 3), difference=difference
    )
    bench.figure("shared_prompt_speedup_over_token_ratio", speed_up / ratio)
    bench.figure("shared_prompt_score_difference", difference)


def _for_callers(bench: Bench, selector: str, call_items: Sequence[list[Item]]) -> list[list[Call]]:
    calls = make_calls(selector, list(call_items))
    num_callers = bench.callers(CALLERS)
    return [calls[number::num_callers] for number in range(num_callers)]


def _difference(service: Service, selector: str, grouped: Sequence[list[Item]], apart: Sequence[list[Item]]) -> float:
    """The largest difference between an item's scores in a group and among strangers."""
    of_groups, of_strangers = _scored(service, selector, grouped), _scored(service, selector, apart)
    return max(abs(of_groups[item] - of_strangers[item]) for item in of_groups)


def _scored(service: Service, selector: str, call_items: Sequence[list[Item]]) -> dict[Item, float]:
    send = service.channel.unary_unary(SCORE_METHOD)
    found: dict[Item, float] = {}
    for items, call in zip(call_items, make_calls(selector, list(call_items)), strict=True):
        found.update(zip(items, scores_of(send(call.request, timeout=60)), strict=True))
    return found
