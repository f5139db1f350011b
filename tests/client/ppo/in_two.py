"""Starts a script in two processes of torchrun, and ends it in each."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

_ENDED = "all is done"

_CRASHED = re.compile(r"exitcode\s*: -(6|11)\b")
"""In what torchrun says of a process that died of SIGABRT or SIGSEGV"""


def run_in_two(script: str, folder: str, *arguments: str, environment: Mapping[str, str]) -> str:
    """What two processes of a script in this directory print, which work in `folder`. Its last word is `leave`.

    A process that dies after that, of how torch takes its process group down, has done what it was started for. Torch's
    collectives on CPUs end a process in the midst of its work, too, once in some hundred runs (free() of an invalid
    pointer, while a sharded state is gathered). Nothing in Python does that, so then both start once more, where they
    did before, with a warning.
    """
    with TemporaryDirectory() as spare:
        before = shutil.copytree(folder, Path(spare) / "before")
        done = _run(script, folder, *arguments, environment=environment)
        if _ENDED not in done.stdout and _CRASHED.search(done.stderr):
            warnings.warn(f"a process of {script} crashed, and is started again: {done.stderr}", stacklevel=2)
            shutil.rmtree(folder)
            shutil.copytree(before, folder)
            done = _run(script, folder, *arguments, environment=environment)
    # Its end first: that is where the reason stands.
    assert done.stdout.count(_ENDED) == 2, f"{done.returncode}: {done.stderr[-4000:]}\n…\n{done.stderr[:-4000]}"
    return done.stdout


def _run(script: str, *arguments: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    path = Path(__file__).with_name(script)
    paths = [str(path.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return subprocess.run(
        [*torchrun, str(path), *arguments],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONFAULTHANDLER": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def leave() -> None:
    """Says that all is done, and ends the process group when the other process has said so, too."""
    sys.stdout.write(f"\n{_ENDED}\n")
    sys.stdout.flush()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
