"""Our service against other servers with the same model and texts, and against our backend inside LitServe."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench import models
from bench.load import Answer, Call, closed, closed_loop
from bench.measurement import Bench, make_calls, speed
from bench.offline import Offline, transformers_scorer
from bench.peers.catalog import CONTROL, PEERS
from bench.peers.peer import HttpCalls, Peer, RunningPeer
from bench.service import Service
from bench.statistics import median, median_ratio
from bench.workload import Item, in_calls, items

PLANNED_S = 3000
CALLERS, ITEMS = 16, 8
OURS = "ours"
LIMIT_S = {"fp32": 35 * 60.0, "bf16": 70 * 60.0}
"""When no further round of a precision begins, in seconds since the question was asked."""
TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2}
"""How far a server's scores may be from transformers' own in fp32; those of two items differ by about 0.1."""

Speeds = dict[tuple[str, int], list[float]]


@dataclass(frozen=True, slots=True)
class Arm:
    """A server that is up. ``ask``: measures it once; raises what its failure is."""

    name: str
    workers: int
    ask: Callable[[], list[Answer]]


def run(bench: Bench) -> None:
    """16 callers with 8 items each. All servers of one precision are up, and take turns; the others stand still.

    A peer that cannot be installed, started or asked, or gives other scores, gets a row that says so, and no other
    peer is touched.
    """
    model = models.encoder()
    pool = items(model.vocabulary, 4 * CALLERS * ITEMS, seed=14)
    begun = time.monotonic()
    control_ratios = []
    for precision in ("fp32",) if bench.quick else ("fp32", "bf16"):
        speeds = _speeds(bench, model.folder, pool, precision, begun + LIMIT_S[precision])
        ours = _best(speeds, OURS)
        peers = [_best(speeds, peer.name) for peer in PEERS if (peer.name, 1) in speeds]
        if peers:
            bench.figure(f"service_over_best_peer_{precision}", median_ratio(ours, max(peers, key=median)))
        if any(name == CONTROL.name for name, _ in speeds):
            control_ratios.append(median_ratio(ours, _best(speeds, CONTROL.name)))
            bench.row(precision=precision, server="ours over control, best of each", ratio=control_ratios[-1])
    if control_ratios:
        bench.figure("service_over_litserve_with_our_backend", min(control_ratios))
    if not any(name.startswith("service_over_best_peer") for name in bench.figures):
        raise RuntimeError("No peer could be measured; the rows say why.")


def _speeds(bench: Bench, folder: Path, pool: Sequence[Item], precision: str, end: float) -> Speeds:
    """Tokens/s in each round, by server and number of workers; only of those that answered in all rounds."""
    call_items = in_calls(pool, ITEMS)
    seconds = bench.seconds(12)
    layouts = [(1, bench.cores)] if bench.cores == 1 else [(1, bench.cores), (bench.cores, 1)]
    speeds: Speeds = {}
    with ExitStack() as stack:
        arms = []
        for workers, threads in layouts:
            service = stack.enter_context(Service(workers=workers, threads=threads))
            calls = make_calls(service.deploy(models.encoder().name, folder, precision), call_items)
            arms.append(Arm(OURS, workers, _ours(bench, service, calls, seconds)))
        for peer, workers, threads in [(peer, *layouts[0]) for peer in PEERS] + [(CONTROL, *each) for each in layouts]:
            try:
                running = stack.enter_context(
                    RunningPeer(peer, folder, precision=precision, workers=workers, threads=threads)
                )
                _check_scores(peer, running, folder, call_items[0], precision)
            except Exception as error:
                bench.row(precision=precision, server=peer.name, workers=workers, not_run=_reason(error))
            else:
                arms.append(Arm(peer.name, workers, _theirs(bench, running, peer.calls(call_items), seconds)))
        offline = stack.enter_context(Offline(workers=1, threads=bench.cores, as_served=False))
        offline.load("padded", folder, "padded", precision, pool)
        for number in range(bench.rounds):
            if number and time.monotonic() > end:
                bench.row(precision=precision, server="all", not_run=f"round {number}: the time was over")
                break
            for arm in list(arms):
                label = {"round": number, "precision": precision, "server": arm.name, "workers": arm.workers}
                try:
                    cells = speed(arm.ask())
                except Exception as error:
                    if arm.name == OURS:
                        raise
                    # Its rounds would no longer be those of the others.
                    bench.row(**label, not_run=_reason(error))
                    arms.remove(arm)
                    speeds.pop((arm.name, arm.workers), None)
                    continue
                bench.row(**label, **cells)
                speeds.setdefault((arm.name, arm.workers), []).append(cells["tokens_per_s"])
            by_hand = offline.tokens_per_s("padded", seconds)
            bench.row(round=number, precision=precision, server="transformers by hand", tokens_per_s=by_hand)
    return speeds


def _best(speeds: Speeds, name: str) -> list[float]:
    """The rounds of the layout in which the server was fastest in the median."""
    return max((found for (server, _), found in speeds.items() if server == name), key=median)


def _check_scores(peer: Peer, running: RunningPeer, folder: Path, part: Sequence[Item], precision: str) -> None:
    """Raises RuntimeError where the peer gives other scores than transformers: its speed would say nothing."""

    async def ask() -> list[float]:
        async with HttpCalls(running) as send:
            return await send(peer.calls([part])[0].request)

    with running.awake():
        came = asyncio.run(ask())
    expected = transformers_scorer(folder, "fp32")([item.text for item in part], peer.pairs_with)
    off = max(abs(a - b) for a, b in zip(came, expected, strict=True))
    if not off <= TOLERANCE[precision]:
        raise RuntimeError(f"{peer.name} gives scores that are {off:.2g} off those of transformers.")


def _ours(bench: Bench, service: Service, calls: list[Call], seconds: float) -> Callable[[], list[Answer]]:
    return lambda: closed(service.address, _dealt(bench, calls), warm_up_s=bench.warm_up_s, seconds=seconds)


def _theirs(bench: Bench, running: RunningPeer, calls: list[Call], seconds: float) -> Callable[[], list[Answer]]:
    async def ask() -> list[Answer]:
        # Slow ones need longer until each caller was answered twice.
        async with HttpCalls(running) as send:
            return await closed_loop(send, _dealt(bench, calls), warm_up_s=2 * bench.warm_up_s, seconds=3 * seconds)

    def measure() -> list[Answer]:
        with running.awake():
            return asyncio.run(ask())

    return measure


def _dealt(bench: Bench, calls: list[Call]) -> list[list[Call]]:
    num_callers = bench.callers(CALLERS)
    return [calls[number::num_callers] for number in range(num_callers)]


def _reason(error: Exception) -> str:
    """The last line of an error, where its cause stands, short enough for a table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).replace("|", "/")[:200]
