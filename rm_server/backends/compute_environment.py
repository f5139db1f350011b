"""The environment of a process that computes: what its libraries read once, as they are loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# Every forward asks for the same few large pieces of memory. By itself malloc gives each back to the system as it is
# freed, and the next forward pays for fresh pages, which the system has to clear (a tenth of an fp32 forward of
# MiniLM). One arena: what one thread has freed, all others may use.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_ARENA_MAX": "1"}

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def compute_environment(threads: int, gpu: int | None = None) -> dict[str, str]:
    """All variables of a process that computes with so many threads; what was chosen for memory outside stays so.

    ``gpu``: the process sees this one alone of those that are visible here, counted from 0; None: all of them.
    """
    own_gpu = {} if gpu is None else {_VISIBLE: nth_gpu(gpu, os.environ.get(_VISIBLE))}
    return {
        **_MALLOC,
        **os.environ,
        # Before torch is imported, so that every thread of the process keeps to it.
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        **own_gpu,
    }


def nth_gpu(number: int, visible: str | None) -> str:
    """What CUDA_VISIBLE_DEVICES is to be for one GPU, counted from 0, of those that it names; None: it is not set.

    Empty, which is no GPU, where there are not so many.
    """
    if visible is None:
        return str(number)
    names = [name.strip() for name in visible.split(",")]
    return names[number] if number < len(names) else ""


@contextmanager
def environment_for_children(variables: Mapping[str, str]) -> Iterator[None]:
    """Surrounds the start of processes by `multiprocessing`, which hands on this process's own environment."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
