"""Our service against other servers with the same model and texts, and against our backend inside LitServe."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack

from bench import models
from bench.load import Answer, Call, closed, closed_loop
from bench.measurement import Bench, make_calls, speed
from bench.offline import Offline
from bench.peers.catalog import CONTROL, LITSERVE, PEERS
from bench.peers.peer import HttpCalls, Peer, RunningPeer
from bench.service import Service
from bench.statistics import median, median_ratio
from bench.workload import in_calls, items

CALLERS, ITEMS = 16, 8
OURS = "ours"


def run(bench: Bench) -> None:
    """16 callers with 8 items each. All servers of one precision are up, and take turns; idle ones cost nothing."""
    model = models.encoder()
    pool = items(model.vocabulary, 4 * CALLERS * ITEMS, seed=14)
    call_items = in_calls(pool, ITEMS)
    seconds = bench.seconds(12)
    layouts = [(1, bench.cores)] if bench.cores == 1 else [(1, bench.cores), (bench.cores, 1)]
    peers = (LITSERVE,) if bench.quick else PEERS

    def measured(name: str, workers: int, answers: list[Answer], precision: str, number: int) -> float:
        cells = speed(answers)
        bench.row(round=number, precision=precision, server=name, workers=workers, **cells)
        return float(cells["tokens_per_s"])

    control_ratios = []
    for precision in ("fp32",) if bench.quick else ("fp32", "bf16"):
        speeds: dict[tuple[str, int], list[float]] = {}
        with ExitStack() as stack:
            arms: list[tuple[str, int, Callable[[], list[Answer]]]] = []
            for workers, threads in layouts:
                service = stack.enter_context(Service(workers=workers, threads=threads))
                selector = service.deploy(model.name, model.folder, precision)
                arms.append((OURS, workers, _ours(bench, service, make_calls(selector, call_items), seconds)))
            wanted = [(peer, *layouts[0]) for peer in peers] + [(CONTROL, *layout) for layout in layouts]
            for peer, workers, threads in wanted:
                try:
                    running = stack.enter_context(
                        RunningPeer(peer, model.folder, precision=precision, workers=workers, threads=threads)
                    )
                except RuntimeError as error:
                    reason = str(error).strip().splitlines()
                    bench.row(precision=precision, server=peer.name, workers=workers, failed=reason[-1][:200])
                    continue
                arms.append((peer.name, workers, _theirs(bench, peer, running, peer.calls(call_items), seconds)))
            offline = stack.enter_context(Offline(workers=1, threads=bench.cores))
            offline.load("padded", model.folder, "padded", precision, pool)
            for number in range(bench.rounds):
                for name, workers, ask in arms:
                    found = measured(name, workers, ask(), precision, number)
                    speeds.setdefault((name, workers), []).append(found)
                by_hand = offline.tokens_per_s("padded", seconds)
                bench.row(round=number, precision=precision, server="transformers by hand", tokens_per_s=by_hand)
        ours = _best({key: found for key, found in speeds.items() if key[0] == OURS})
        theirs = {key: found for key, found in speeds.items() if key[0] not in (OURS, CONTROL.name)}
        if not theirs:
            raise RuntimeError("No peer could be started; the rows say why.")
        bench.figure(f"service_over_best_peer_{precision}", median_ratio(ours, _best(theirs)))
        control = {key: found for key, found in speeds.items() if key[0] == CONTROL.name}
        if control:
            control_ratios.append(median_ratio(ours, _best(control)))
            bench.row(precision=precision, server="ours over control, best of each", ratio=control_ratios[-1])
    if control_ratios:
        bench.figure("service_over_litserve_with_our_backend", min(control_ratios))


def _best(speeds: dict[tuple[str, int], list[float]]) -> list[float]:
    """The rounds of the server that was fastest in the median."""
    return max(speeds.values(), key=median)


def _ours(bench: Bench, service: Service, calls: list[Call], seconds: float) -> Callable[[], list[Answer]]:
    return lambda: closed(service.address, _dealt(bench, calls), warm_up_s=bench.warm_up_s, seconds=seconds)


def _theirs(
    bench: Bench, peer: Peer, running: RunningPeer, calls: list[Call], seconds: float
) -> Callable[[], list[Answer]]:
    async def ask() -> list[Answer]:
        # Slow ones need longer until each caller was answered twice.
        async with HttpCalls(running) as send:
            return await closed_loop(send, _dealt(bench, calls), warm_up_s=2 * bench.warm_up_s, seconds=3 * seconds)

    return lambda: asyncio.run(ask())


def _dealt(bench: Bench, calls: list[Call]) -> list[list[Call]]:
    num_callers = bench.callers(CALLERS)
    return [calls[number::num_callers] for number in range(num_callers)]
