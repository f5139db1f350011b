"""`python -m bench.storm`: lets the storms loose on a real server, one after the other, and writes down what broke."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import time
from pathlib import Path

from bench import results
from bench.ending import end_as_by_ctrl_c
from bench.measurement import Bench

HERE = Path(__file__).parent
STORMS = ("swaps", "latency", "cycles", "kills", "replicas")


def main() -> int:
    """The exit status is 1 when a figure misses what is wanted. In a quick run, that is nothing to go by: it is 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.storm", description=__doc__, allow_abbrev=False)
    parser.add_argument("--only", nargs="+", choices=STORMS, metavar="STORM", help=" ".join(STORMS))
    parser.add_argument("--quick", action="store_true", help="seconds of each; enough to see what breaks at once")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: bench/storm.json; bench/side/storm.json")
    arguments = parser.parse_args()
    end_as_by_ctrl_c()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # That a label is answered by another version now is what a storm is about.
    logging.getLogger("ppo_client").setLevel(logging.ERROR)

    out = arguments.out or (HERE / "side" / "storm.json" if arguments.quick else HERE / "storm.json")
    found = results.read(out, results.describe_machine(), results.STORM_TARGETS)
    for name in arguments.only or STORMS:
        print(f"{name}:", flush=True)
        load, started = os.getloadavg()[0], time.perf_counter()
        bench = Bench(quick=arguments.quick)
        importlib.import_module(f"bench.storms.{name}").run(bench)
        bench.row(what="took", seconds=round(time.perf_counter() - started, 1), load_before=round(load, 1))
        found.replace(name, bench.rows, bench.figures, round(time.perf_counter() - started, 1))
        found.write(out)
    print(found.page())
    return int(bool(found.missed()) and not arguments.quick)


if __name__ == "__main__":
    sys.exit(main())
