"""`python -m bench.ppo`: our PPO trainer beside trl 1.12's, into bench/ppo.json."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from transformers.utils import logging

from bench import results
from bench.ending import end_as_by_ctrl_c
from bench.measurement import Bench
from bench.ppo import questions

HERE = Path(__file__).parent.parent
QUESTIONS: dict[str, Callable[[Bench], None]] = {
    "compare": questions.compare,
    "memory": questions.memory,
    "waiting": questions.waiting,
}
TARGETS: Mapping[str, tuple[str, float]] = {
    "cpu_over_trl_shared": ("≤", 0.5),
    "cpu_over_trl_separate": ("≤", 0.8),
    "final_reward_minus_trl": ("≥", -0.01),
    "peak_memory_over_trl": ("≤", 0.7),
    "reward_wait_share": ("≤", 0.1),
    "step_over_generation_and_update": ("≤", 1.15),
}
"""What each figure is wanted to be."""


def main() -> int:
    """The exit status is 0 when everything could be measured, whatever the figures are."""
    parser = argparse.ArgumentParser(prog="python -m bench.ppo", description=__doc__, allow_abbrev=False)
    parser.add_argument("--only", nargs="+", choices=QUESTIONS, metavar="QUESTION", help=" ".join(QUESTIONS))
    parser.add_argument("--quick", action="store_true", help="a smoke test of a minute; its figures mean nothing")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: bench/ppo.json; bench/side/quick_ppo.json")
    arguments = parser.parse_args()
    end_as_by_ctrl_c()
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }.items():
        os.environ.setdefault(name, value)
    logging.disable_progress_bar()

    out = arguments.out or (HERE / "side" / "quick_ppo.json" if arguments.quick else HERE / "ppo.json")
    found = results.read(out, results.describe_machine(), TARGETS)
    load = os.getloadavg()[0]
    if load > 0.5 and not arguments.quick:
        print(f"This machine is not quiet (load {load:.1f}); believe the ratios only if it is.", file=sys.stderr)
    for name in arguments.only or QUESTIONS:
        print(f"{name} (load {os.getloadavg()[0]:.1f}):", flush=True)
        started = time.perf_counter()
        bench = Bench(quick=arguments.quick)
        QUESTIONS[name](bench)
        print(f"  took {time.perf_counter() - started:.0f} s", flush=True)
        found.replace(name, bench.rows, bench.figures)
        # After each, so that what was measured is kept if a later one fails.
        found.write(out)
    print(found.page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
