"""Starts a script in two processes of torchrun, and ends it in each."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

_ENDED = "all is done"


def run_in_two(script: str, *arguments: str, environment: Mapping[str, str]) -> str:
    """What two processes of a script in this directory print. The script's last word is `leave`.

    A process that dies after that, of how torch takes its process group down, has done what it was started for.
    """
    path = Path(__file__).with_name(script)
    paths = [str(path.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        [*torchrun, str(path), *arguments],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    # Its end first: that is where the reason stands.
    assert done.stdout.count(_ENDED) == 2, f"{done.returncode}: {done.stderr[-4000:]}\n…\n{done.stderr[:-4000]}"
    return done.stdout


def leave() -> None:
    """Says that all is done, and ends the process group when the other process has said so, too."""
    sys.stdout.write(f"\n{_ENDED}\n")
    sys.stdout.flush()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
