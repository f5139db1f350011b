"""Four times as much as the service can do: what is done, how fast the rest is refused, and how it is afterwards."""

from __future__ import annotations

import time
from collections import Counter
from statistics import mean

import numpy as np

from bench import models
from bench.load import SCORE_METHOD, Answer, Call, closed, opened
from bench.measurement import Bench, for_callers, make_calls, speed
from bench.results import Row
from bench.service import Service, scores_of
from bench.statistics import percentile
from bench.workload import arrivals, in_calls, items

PLANNED_S = 95
ITEMS = 8
FACTOR = 4
QUEUE_ITEMS = 256
"""A few seconds of work: with the default bounds the first refusal would come after minutes."""
RUNS = 8
REFUSED = "RESOURCE_EXHAUSTED"


def run(bench: Bench) -> None:
    """Capacity, by closed loops, before and after calls by the clock, for machines drift; and one call more."""
    model = models.encoder()
    seconds = bench.seconds(60)
    with Service(**{"engine.max_queued_items": 4 * ITEMS if bench.quick else QUEUE_ITEMS}) as service:
        selector = service.deploy(model.name, model.folder, "fp32")
        calls = for_callers(model, selector, callers=bench.callers(16), items_per_call=ITEMS)
        capacity = _capacity(bench, service, calls)
        before = service.resident_bytes()
        schedule = _schedule(model, selector, FACTOR * capacity["items_per_s"] / ITEMS, seconds)
        start = time.perf_counter()
        answers = opened(service.address, schedule)
        growth = service.resident_bytes() / before - 1
        again_s = _one_more(service, calls[0][0])
        capacities = [capacity["tokens_per_s"], _capacity(bench, service, calls)["tokens_per_s"]]
    failures = Counter(answer.failure for answer in answers)
    if unexpected := set(failures) - {"", REFUSED}:
        raise RuntimeError(f"Calls failed otherwise than by a refusal: {sorted(unexpected)}")
    in_time = [answer for answer in answers if not answer.failure and answer.end <= start + seconds]
    goodput = _tokens_per_s(in_time, start, seconds / 4)
    refusals = [answer.seconds for answer in answers if answer.failure]
    refusal_p99_ms = 1000 * percentile(refusals, 0.99) if refusals else float("nan")
    bench.row(what="overload", sent=len(answers), answered=failures[""], refused=failures[REFUSED])
    bench.row(what="overload", goodput_tokens_per_s=round(goodput, 1), refusal_p99_ms=round(refusal_p99_ms, 2))
    bench.row(what="afterwards", resident_growth=round(growth, 4), next_call_ms=round(1000 * again_s, 1))
    if not refusals:
        raise RuntimeError("Nothing was refused, so this was no overload.")
    bench.figure("overload_goodput", goodput / mean(capacities))
    bench.figure("overload_refusal_p99_ms", refusal_p99_ms)


def _capacity(bench: Bench, service: Service, calls: list[list[Call]]) -> Row:
    capacity = speed(closed(service.address, calls, warm_up_s=bench.warm_up_s, seconds=bench.seconds(8)))
    bench.row(what="capacity", **capacity)
    return capacity


def _schedule(model: models.Model, selector: str, per_s: float, seconds: float) -> list[tuple[float, int, Call]]:
    """Several runs, by chance, together ``per_s`` calls a second."""
    rng = np.random.default_rng(12)
    pool = in_calls(items(model.vocabulary, 64 * ITEMS, seed=13), ITEMS)
    of_runs = [make_calls(selector, pool, f"run-{number}") for number in range(RUNS)]
    return [
        (at, place % RUNS, of_runs[place % RUNS][place // RUNS % len(pool)])
        for place, at in enumerate(arrivals(rng, per_s, seconds))
    ]


def _tokens_per_s(answers: list[Answer], start: float, settle_s: float) -> float:
    """Answered work, once the queue is full: from the first answer after ``settle_s`` to the last."""
    counted = sorted((answer for answer in answers if answer.end >= start + settle_s), key=lambda answer: answer.end)
    if len(counted) < 2:
        return 0.0
    return sum(answer.call.num_tokens for answer in counted[1:]) / (counted[-1].end - counted[0].end)


def _one_more(service: Service, call: Call) -> float:
    """Seconds until a call is answered, when all others are."""
    send = service.channel.unary_unary(SCORE_METHOD)
    start = time.perf_counter()
    scores_of(send(call.request, timeout=60))
    return time.perf_counter() - start
