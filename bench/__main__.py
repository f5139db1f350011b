"""`python -m bench`: asks the questions one after the other and writes down what came."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
import traceback
from pathlib import Path

from bench import results
from bench.ending import end_as_by_ctrl_c
from bench.measurement import Bench

HERE = Path(__file__).parent
QUESTIONS = (
    "throughput",
    "latency",
    "overhead",
    "shared_prompts",
    "order",
    "fairness",
    "overload",
    "health",
    "memory",
    "shadow",
    "composite",
    "deterministic",
    "growth",
)
PEERS = "peers"


def main() -> int:
    """The exit status is 0 when everything could be measured, whatever the figures are."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=(*QUESTIONS, PEERS),
        metavar="QUESTION",
        help=f"{' '.join(QUESTIONS)}; {PEERS}, which installs other servers",
    )
    parser.add_argument("--quick", action="store_true", help="a smoke test of seconds; its figures mean nothing")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: bench/results.json; bench/side/quick.json")
    arguments = parser.parse_args()
    end_as_by_ctrl_c()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    out = arguments.out or (HERE / "side" / "quick.json" if arguments.quick else HERE / "results.json")
    found = results.read(out, results.describe_machine())
    load = os.getloadavg()[0]
    if load > 0.5 and not arguments.quick:
        print(f"This machine is not quiet (load {load:.1f}); believe the ratios only if it is.", file=sys.stderr)
    questions = {name: importlib.import_module(f"bench.questions.{name}") for name in arguments.only or QUESTIONS}
    if not arguments.quick:
        print(f"This takes about {sum(each.PLANNED_S for each in questions.values()) / 60:.0f} minutes.", flush=True)
    failed = []
    for name, question in questions.items():
        print(f"{name}:", flush=True)
        started = time.perf_counter()
        bench = Bench(quick=arguments.quick)
        try:
            question.run(bench)
        except Exception:
            # What the others say is not less true.
            traceback.print_exc()
            failed.append(name)
        took_s = round(time.perf_counter() - started, 1)
        print(f"  took {took_s} s", flush=True)
        found.replace(name, bench.rows, bench.figures, took_s)
        # After each, so that what was measured is kept whatever happens to the next.
        found.write(out)
    print(found.page())
    if failed:
        print(f"Could not be measured: {', '.join(failed)}; see above.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
