"""The swap storm: callers score while everything that can be changed is changed without pause."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench import models
from bench.measurement import Bench
from bench.service import Service
from bench.statistics import percentile
from bench.storms.callers import PROMPT, TEXTS, Caller, Reply
from bench.storms.meaning import Meaning
from bench.storms.operators import Operators
from ppo_client import RewardClient

MODEL, COMPOSITE = "storm", "mix"
NUM_CALLERS = 32
CALLS_PER_CALLER = 1024
CALLERS_PER_CLIENT = 4
NUM_NETWORKS = 8
VERSIONS, PASSING_VERSIONS = (1, 2, 3, 4, NUM_NETWORKS + 1), (5, 6, 7, 8)
COMPOSITE_VERSIONS = (1, 2)


def run(bench: Bench) -> None:
    """Failed calls, answers that the selector did not allow, and broken leases; all of them should be 0."""
    num_callers, num_calls = (8, 64) if bench.quick else (NUM_CALLERS, CALLS_PER_CALLER)
    meaning = Meaning()
    with Service(workers=1, threads=1) as service, tempfile.TemporaryDirectory() as folder:
        versions, composites = _deploy(service, Path(folder))
        for (model, label), version in {(MODEL, "stable"): 1, (MODEL, "canary"): 5, (COMPOSITE, "stable"): 1}.items():
            service.set_label(model, label, version)
            meaning.labels[model, label].change(0.0, time.monotonic(), version)
        clients = [RewardClient(service.address, run="") for _ in range(0, num_callers, CALLERS_PER_CLIENT)]
        expected = {
            selector: dict(zip(TEXTS, scores.values, strict=True))
            for selector in (*versions, *composites)
            for scores in [clients[0].score(selector, prompts=[PROMPT] * len(TEXTS), completions=TEXTS)]
        }
        callers = [
            Caller(clients[number // CALLERS_PER_CLIENT], number, MODEL, COMPOSITE, num_calls, expected)
            for number in range(num_callers)
        ]
        operators = Operators(
            service.address,
            *(MODEL, COMPOSITE, VERSIONS, PASSING_VERSIONS, COMPOSITE_VERSIONS),
            meaning,
            lambda: [caller.next_run for caller in callers],
        )
        started = time.monotonic()
        with operators.at_work():
            for thread in [caller.start() for caller in callers]:
                thread.join()
        seconds = time.monotonic() - started
        for client in clients:
            client.close()
    _report(bench, callers, operators, meaning, seconds)


def _deploy(service: Service, folder: Path) -> tuple[list[str], list[str]]:
    """Eight networks and a version of rules that can replace one another, and two composites of some of them."""
    networks = [models.small(seed) for seed in range(NUM_NETWORKS)]
    versions = [service.deploy(MODEL, network) for network in (*networks, models.text_rules())]
    parts = ([versions[0], versions[1]], [versions[2], versions[-1]])
    specs = [models.composite(folder / str(number), of) for number, of in enumerate(parts)]
    return versions, [service.deploy(COMPOSITE, spec) for spec in specs]


def _report(bench: Bench, callers: list[Caller], operators: Operators, meaning: Meaning, seconds: float) -> None:
    replies = [reply for caller in callers for reply in caller.replies]
    failures = [failure for caller in callers for failure in caller.failures]
    lease_failures = [failure for caller in callers for failure in caller.lease_failures]
    wrong_scores = [wrong for caller in callers for wrong in caller.wrong_scores]
    refused = [reply for reply in replies if not reply.is_allowed(meaning)]
    broken = [reply for reply in refused if reply.held is not None]
    waits = [wait for caller in callers for wait in caller.seconds]
    bench.row(
        what="callers",
        num=len(callers),
        requests=len(waits),
        seconds=round(seconds, 1),
        p50_ms=1000 * percentile(waits, 0.5),
        p99_ms=1000 * percentile(waits, 0.99),
        versions_met=len({(reply.selector.partition("@")[0], reply.version) for reply in replies}),
    )
    for what, num in sorted(operators.num_done.items()):
        bench.row(what=f"{what}s changed", num=num, refused=operators.num_refused[what])
    for problem in [*failures, *operators.failures, *wrong_scores, *map(_described, refused)][:20]:
        bench.row(what="problem", text=problem)
    bench.figure("requests", len(waits))
    bench.figure("failed", len(failures) + len(operators.failures))
    bench.figure("misversioned", len(refused) - len(broken) + len(wrong_scores))
    bench.figure("leases_broken", len(broken) + len(lease_failures))


def _described(reply: Reply) -> str:
    held = "" if reply.held is None else f", which holds {reply.held}"
    return f"{reply.selector} of {reply.run or 'nobody'}{held}, was answered by {reply.version}"
