"""What callers feel of a swap: their p99 at half load while MiniLM versions are swapped, over that without swaps."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench import models
from bench.load import Answer, Call, closed, opened
from bench.measurement import Bench, for_callers, make_calls, speed
from bench.service import Service
from bench.statistics import percentile
from bench.workload import arrivals, in_calls, items

LOAD = 0.5
ITEMS = 1
LABEL = "stable"

Window = tuple[float, float]
"""When a swap began and ended, on the clock of the calls."""


def run(bench: Bench) -> None:
    """Blocks with and without swaps take turns and change places; in those with swaps, one follows the other.

    A worker of one thread for each core: each of them loads, and no core is idle for that.
    """
    model = models.encoder()
    seconds: dict[str, list[float]] = {"steady": [], "swap": []}
    with tempfile.TemporaryDirectory() as folder, Service(workers=bench.cores, threads=1) as service:
        service.deploy(model.name, model.folder, "fp32")
        service.deploy(model.name, models.twin(model, Path(folder) / "twin"), "fp32")
        service.set_label(model.name, LABEL, 1)
        service.unload(f"{model.name}@2")
        selector = f"{model.name}@{LABEL}"
        calls = for_callers(model, selector, callers=bench.callers(4), items_per_call=ITEMS)
        capacity = speed(closed(service.address, calls, warm_up_s=bench.warm_up_s, seconds=bench.seconds(10)))
        bench.row(what="capacity", **capacity)
        for number in range(bench.rounds):
            schedule = _schedule(model, selector, LOAD * capacity["items_per_s"] / ITEMS, bench.seconds(30), number)
            for what in sorted(seconds, reverse=bool(number % 2)):
                if what == "steady":
                    windows: list[Window] = []
                    answers = _answered(service, schedule)
                else:
                    with _swapping(service, model.name) as windows:
                        answers = _answered(service, schedule)
                    answers = [answer for answer in answers if _is_within(answer, windows)]
                found = [answer.seconds for answer in answers]
                seconds[what] += found
                bench.row(
                    round=number,
                    what=what,
                    swaps=len(windows),
                    swap_s=round(sum(end - begin for begin, end in windows) / max(1, len(windows)), 2),
                    calls=len(found),
                    p50_ms=1000 * percentile(found, 0.5),
                    p99_ms=1000 * percentile(found, 0.99),
                )
    # Of all rounds together: the p99 of one round is the wait of a handful of calls.
    p99 = {what: percentile(found, 0.99) for what, found in seconds.items()}
    bench.row(what="all rounds", calls=len(seconds["swap"]), **{f"{what}_ms": 1000 * p99[what] for what in p99})
    bench.figure("p99_swap_over_steady", p99["swap"] / p99["steady"])


def _answered(service: Service, schedule: list[tuple[float, int, Call]]) -> list[Answer]:
    answers = opened(service.address, schedule)
    if failed := [answer.failure for answer in answers if answer.failure]:
        raise RuntimeError(f"{len(failed)} calls failed: {sorted(set(failed))}")
    return answers


@contextmanager
def _swapping(service: Service, model: str) -> Iterator[list[Window]]:
    """The label goes from version to version, each loaded beside the other, which is unloaded then."""
    windows: list[Window] = []
    stop = threading.Event()
    failures: list[Exception] = []

    def swap() -> None:
        version = 1
        while not stop.is_set():
            version = 3 - version
            began = time.perf_counter()
            try:
                service.set_label(model, LABEL, version, unload_previous=True)
            except Exception as error:
                failures.append(error)
                return
            windows.append((began, time.perf_counter()))

    thread = threading.Thread(target=swap, name="swaps")
    thread.start()
    try:
        yield windows
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]
    if windows[-1:] and len(windows) % 2:  # so that each block begins with the same version
        service.set_label(model, LABEL, 1, unload_previous=True)


def _is_within(answer: Answer, windows: list[Window]) -> bool:
    """Whether some of the call's wait lay within a swap."""
    return any(begin <= answer.end and answer.due <= end for begin, end in windows)


def _schedule(
    model: models.Model, selector: str, per_s: float, seconds: float, seed: int
) -> list[tuple[float, int, Call]]:
    rng = np.random.default_rng(seed)
    vocabulary = replace(model.vocabulary, max_tokens=model.vocabulary.max_tokens - 1)  # as the twin takes
    calls = make_calls(selector, in_calls(items(vocabulary, 256 * ITEMS, seed=seed), ITEMS), "run")
    return [(at, 0, calls[place % len(calls)]) for place, at in enumerate(arrivals(rng, per_s, seconds))]
