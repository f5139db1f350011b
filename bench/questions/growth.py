"""How speed and waiting change with the number of callers, of items in a request, and of versions."""

from __future__ import annotations

from bench import models
from bench.load import Call, closed
from bench.measurement import Bench, for_callers, speed
from bench.models import Model
from bench.service import Service

PLANNED_S = 95
SIZES = (1, 8, 64)
CALLERS = (1, 4, 16)
MORE_CALLERS = (32, 64)
MORE_ITEMS = (512,)
MORE_VERSIONS = (2, 8)


def run(bench: Bench) -> None:
    """Each cell once, in bf16, the larger ones beside a grid: this shows shapes, and no figure is made of it."""
    model = models.encoder()
    with Service() as service:
        # Of other models, though of one folder: versions of one content in one model would be the same version.
        selectors = [service.deploy(f"m{number}", model.folder, "bf16") for number in range(2 if bench.quick else 8)]
        cells = [("callers x items", callers, size, 1) for callers in CALLERS for size in SIZES]
        cells += [("callers", callers, 8, 1) for callers in MORE_CALLERS]
        cells += [("items", 1, size, 1) for size in MORE_ITEMS]
        cells += [("versions", 16, 8, num_versions) for num_versions in MORE_VERSIONS]
        if bench.quick:
            cells = [("callers x items", 4, 8, 1), ("versions", 4, 8, 2)]
        for what, callers, size, num_versions in cells:
            calls = _for_versions(model, selectors[:num_versions], callers, size)
            # A call of each caller on the way, however large the calls are.
            seconds = bench.seconds(max(2.5, callers * size / 200))
            answers = closed(service.address, calls, warm_up_s=bench.warm_up_s, seconds=seconds)
            row = {"what": what, "callers": callers, "items": size, "versions": num_versions}
            bench.row(**row, **speed(answers))


def _for_versions(model: Model, selectors: list[str], callers: int, size: int) -> list[list[Call]]:
    """Callers go round the versions."""
    per_version = [for_callers(model, selector, callers=callers, items_per_call=size) for selector in selectors]
    return [per_version[number % len(selectors)][number] for number in range(callers)]
