"""What a composite of three encoders costs beside the three alone: the same items, in turns, one caller."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from bench import models
from bench.load import SCORE_METHOD
from bench.measurement import Bench, make_calls
from bench.service import Service
from bench.statistics import median, median_ratio
from bench.workload import in_calls, items
from rm_server.registry.manifest import Manifest, write_manifest

PLANNED_S = 35
ITEMS = 8
PARTS = ("first", "second", "third")


def run(bench: Bench) -> None:
    """A call to the composite, then the same call to each part one after the other, again and again."""
    model = models.encoder()
    num_calls = 4 if bench.quick else 14
    with Service() as service, tempfile.TemporaryDirectory() as folder:
        parts = [service.deploy(name, model.folder, "fp32") for name in PARTS]
        whole = service.deploy("whole", _composite(Path(folder), parts))
        call_items = in_calls(items(model.vocabulary, 8 * ITEMS, seed=11), ITEMS)
        calls = {selector: make_calls(selector, call_items) for selector in (whole, *parts)}
        send = service.channel.unary_unary(SCORE_METHOD)
        seconds: dict[str, list[float]] = {"composite": [], "the three alone": []}
        for number in range(num_calls):
            which = number % len(call_items)
            arms = {"composite": (whole,), "the three alone": tuple(parts)}
            # Who goes first changes, so that neither always meets the warmer caches.
            for what in sorted(arms, reverse=bool(number % 2)):
                started = time.perf_counter()
                for selector in arms[what]:
                    send(calls[selector][which].request, timeout=60)
                if number >= 2:  # warm by then
                    seconds[what].append(time.perf_counter() - started)
    for what, found in seconds.items():
        bench.row(what=what, calls=len(found), items=ITEMS, p50_ms=round(1000 * median(found), 2))
    bench.figure("composite_cost_over_three_alone", median_ratio(seconds["composite"], seconds["the three alone"]))


def _composite(folder: Path, parts: list[str]) -> Path:
    components = [{"name": part, "version": part, "weight": 0.5} for part in parts]
    (folder / "composite.json").write_text(json.dumps({"components": components}))
    write_manifest(folder, Manifest("composite", transform="weighted_sum"))
    return folder
