"""`python -m bench.gpu`: measures a CUDA device, into bench/gpu.json; says so and ends where there is none."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from bench import models, results
from bench.ending import end_as_by_ctrl_c
from bench.measurement import Bench

HERE = Path(__file__).parent.parent


def main() -> int:
    """The exit status is 0 when all could be measured, whatever the figures are, and where there is no device."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__, allow_abbrev=False)
    parser.add_argument("--device", default="cuda:0", help="default: cuda:0")
    parser.add_argument("--quick", action="store_true", help="a smoke test with a tiny model, into bench/side/gpu.json")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: bench/gpu.json")
    arguments = parser.parse_args()
    end_as_by_ctrl_c()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    import torch

    if not torch.cuda.is_available():
        print(f"Skipped: torch {torch.__version__} sees no CUDA device, so nothing was measured or written.")
        return 0
    from bench.gpu import measure

    out = arguments.out or (HERE / "side" / "gpu.json" if arguments.quick else HERE / "gpu.json")
    machine = {**results.describe_machine(), "gpu": torch.cuda.get_device_name(arguments.device)}
    found = results.read(out, machine, results.GPU_TARGETS)
    sizes = measure.Sizes(matmul=1024, num_items=64, single_calls=5) if arguments.quick else measure.Sizes()
    bench = Bench(quick=arguments.quick)
    started = time.perf_counter()
    measure.run(bench, models.decoder(tiny=arguments.quick), arguments.device, sizes)
    found.replace("gpu", bench.rows, bench.figures, round(time.perf_counter() - started, 1))
    found.write(out)
    print(found.page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
