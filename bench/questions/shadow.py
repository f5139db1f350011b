"""What callers pay for a shadow: their wait with a tenth of the calls shadowed, over that without, at half load."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from rm_api.v1 import experiments_pb2, experiments_pb2_grpc

from bench import models
from bench.load import Call, closed, opened
from bench.measurement import Bench, for_callers, make_calls, speed
from bench.service import Service
from bench.statistics import median, percentile
from bench.workload import arrivals, in_calls, items

PLANNED_S = 65
ITEMS = 4
SHARE = 0.1
LOAD = 0.5
SHADOW_VERSION = 2


def run(bench: Bench) -> None:
    """The same calls at the same times, with and without, in blocks that take turns and change places."""
    model = models.encoder()
    ratios, p99_ratios = [], []
    with tempfile.TemporaryDirectory() as folder, Service() as service:
        selector = service.deploy(model.name, model.folder, "fp32")
        service.deploy(model.name, models.twin(model, Path(folder) / "shadow"), "fp32")
        shadows = experiments_pb2_grpc.ExperimentServiceStub(service.channel)
        calls = for_callers(model, selector, callers=bench.callers(4), items_per_call=ITEMS)
        capacity = speed(closed(service.address, calls, warm_up_s=bench.warm_up_s, seconds=bench.seconds(5)))
        bench.row(what="capacity", **capacity)
        for number in range(bench.rounds):
            schedule = _schedule(model, selector, LOAD * capacity["items_per_s"] / ITEMS, bench.seconds(8), number)
            seconds = {}
            for has_shadow in (False, True) if number % 2 else (True, False):
                _set(shadows, model.name, has_shadow)
                answers = opened(service.address, schedule)
                if failed := [answer.failure for answer in answers if answer.failure]:
                    raise RuntimeError(f"{len(failed)} calls failed: {sorted(set(failed))}")
                seconds[has_shadow] = [answer.seconds for answer in answers]
                cells = {f"p{share}_ms": 1000 * percentile(seconds[has_shadow], share / 100) for share in (50, 99)}
                bench.row(round=number, what="with" if has_shadow else "without", calls=len(answers), **cells)
            ratios.append(median(seconds[True]) / median(seconds[False]))
            p99_ratios.append(percentile(seconds[True], 0.99) / percentile(seconds[False], 0.99))
        compared = _num_pairs(shadows, model.name)
    bench.row(what="compared by the shadow", items=compared)
    if not compared and not bench.quick:
        raise RuntimeError("The shadow scored nothing, so this says nothing.")
    bench.figure("shadow_p50_ratio", median(ratios))
    bench.figure("shadow_p99_ratio", median(p99_ratios))


def _schedule(
    model: models.Model, selector: str, per_s: float, seconds: float, seed: int
) -> list[tuple[float, int, Call]]:
    rng = np.random.default_rng(seed)
    calls = make_calls(selector, in_calls(items(model.vocabulary, 128 * ITEMS, seed=seed), ITEMS), "run")
    return [(at, 0, calls[place % len(calls)]) for place, at in enumerate(arrivals(rng, per_s, seconds))]


def _set(shadows: experiments_pb2_grpc.ExperimentServiceStub, name: str, has_shadow: bool) -> None:
    listed = shadows.ListShadows(experiments_pb2.ListShadowsRequest(model=name)).shadows
    if has_shadow and not listed:
        shadow = experiments_pb2.Shadow(model=name, version=SHADOW_VERSION, share=SHARE)
        shadows.SetShadow(experiments_pb2.SetShadowRequest(shadow=shadow))
    elif listed and not has_shadow:
        shadows.RemoveShadow(experiments_pb2.RemoveShadowRequest(model=name, version=SHADOW_VERSION))


def _num_pairs(shadows: experiments_pb2_grpc.ExperimentServiceStub, name: str) -> int:
    request = experiments_pb2.GetShadowReportRequest(model=name, version=SHADOW_VERSION)
    return int(json.loads(shadows.GetShadowReport(request).report_json)["num_pairs"])
