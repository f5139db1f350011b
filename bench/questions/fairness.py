"""What a light run feels of a heavy one, with our turns and first come, first served; how equal the turns are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from bench import models
from bench.load import Answer, Call, closed, opened
from bench.measurement import Bench, for_callers, make_calls, speed
from bench.models import Model
from bench.offline import BATCH_TOKENS
from bench.service import Service
from bench.statistics import jain_index, percentile
from bench.workload import arrivals, in_calls, items

PLANNED_S = 105
ITEMS = 8
LIGHT_ITEMS = 2
"""In a call of the light run, so that it has enough calls for a p95"""
LIGHT_SHARE = 0.15
"""Of the capacity, that the light run asks for; the heavy one asks for 10 times as much, more than there is."""
HEAVY_FACTOR = 10
GREED = (4, 8, 16, 32)
"""Callers of runs that all want more than their share."""


def run(bench: Bench) -> None:
    """Calls by the clock: the light run alone; beside a heavy run; as one run, which is served in order."""
    model = models.encoder()
    with Service() as service:
        selector = service.deploy(model.name, model.folder, "fp32")
        calls = for_callers(model, selector, callers=bench.callers(16), items_per_call=ITEMS)
        capacity = speed(closed(service.address, calls, warm_up_s=bench.warm_up_s, seconds=bench.seconds(8)))
        bench.row(what="capacity", **capacity)
        light_per_s = LIGHT_SHARE * capacity["items_per_s"]
        p95_s = {}
        for what, heavy_run in (("alone", None), ("fair", "heavy"), ("first come, first served", "light")):
            answers = _light_answers(bench, model, service, selector, light_per_s, heavy_run)
            seconds = [answer.seconds for answer in answers]
            p95_s[what] = percentile(seconds, 0.95)
            cells = {"p50_ms": round(1000 * percentile(seconds, 0.5), 1), "p95_ms": round(1000 * p95_s[what], 1)}
            bench.row(what=f"light run: {what}", calls=len(seconds), **cells)
        batch_s = BATCH_TOKENS / capacity["tokens_per_s"]
        bench.row(what="a full batch at capacity", p50_ms=round(1000 * batch_s, 1))
        bench.figure("light_run_wait_batches", max(0.0, p95_s["fair"] - p95_s["alone"]) / batch_s)
        bench.figure("fifo_over_fair_p95", p95_s["first come, first served"] / p95_s["fair"])
        _equal_turns(bench, model, service, selector)


def _light_answers(
    bench: Bench, model: Model, service: Service, selector: str, light_per_s: float, heavy_run: str | None
) -> Sequence[Answer]:
    """Answers of the light run, which asks for so many items a second, while a heavy one may send longer calls."""
    rng = np.random.default_rng(8)
    seconds = bench.seconds(13)
    pool = items(model.vocabulary, 64 * ITEMS, seed=9)
    schedule: list[tuple[float, int, Call]] = []
    light = make_calls(selector, in_calls(pool, LIGHT_ITEMS), "light")
    times = list(arrivals(rng, light_per_s / LIGHT_ITEMS, seconds)) or [seconds / 2]
    schedule += [(at, 0, light[place % len(light)]) for place, at in enumerate(times)]
    if heavy_run is not None:
        heavy = make_calls(selector, in_calls(pool[::-1], ITEMS), heavy_run)
        times = list(arrivals(rng, HEAVY_FACTOR * light_per_s / ITEMS, seconds))
        schedule += [(at, 1, heavy[place % len(heavy)]) for place, at in enumerate(times)]
    answers = opened(service.address, schedule)
    if failures := Counter(answer.failure for answer in answers if answer.failure):
        raise RuntimeError(f"Calls failed: {dict(failures)}")
    return [answer for answer in answers if answer.caller == 0]


def _equal_turns(bench: Bench, model: Model, service: Service, selector: str) -> None:
    """Runs of equal weight whose callers differ in number, all with more waiting than a batch holds."""
    calls: list[list[Call]] = []
    run_of: list[int] = []
    for number, callers in enumerate(GREED):
        callers = bench.callers(callers)
        run = f"run-{number}"
        calls += for_callers(model, selector, callers=callers, items_per_call=ITEMS, seed=10 + number, run=run)
        run_of += [number] * callers
    answers = closed(service.address, calls, warm_up_s=2 * bench.warm_up_s, seconds=bench.seconds(13))
    tokens = [0] * len(GREED)
    for answer in answers:
        # Each run is served in order: what ended in the window was computed in it, but for a call at either edge. By
        # each call's share of it, runs of many callers would count too much: their first calls wait from the beginning.
        tokens[run_of[answer.caller]] += 0 if answer.is_late else answer.call.num_tokens
    for callers, count in zip(GREED, tokens, strict=True):
        bench.row(what=f"tokens of the run with {callers} callers", tokens=count)
    bench.figure("jain_index", jain_index(tokens))
