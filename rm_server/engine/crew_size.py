"""How many workers with how many threads: what the settings say, and what they leave to this machine."""

from __future__ import annotations

import os

from rm_server.config import EngineSettings

_WORKERS_ON_CPU = 2
"""Side by side two get more done than one with all threads, which wait for each other after every product: 20 % in bf16
and 13 % in fp32, measured with MiniLM-L6 behind a busy server on two cores. Each holds the weights, hence no more."""


def num_workers(settings: EngineSettings) -> int:
    """As set; else two on a CPU with more than one core, and one on a GPU."""
    if settings.workers is not None:
        return settings.workers
    return min(_WORKERS_ON_CPU, _num_cores()) if settings.device == "cpu" else 1


def threads_per_worker(settings: EngineSettings) -> int:
    """As set, or the cores divided between the workers."""
    return settings.threads_per_worker or max(1, _num_cores() // max(1, num_workers(settings)))


def threads_alone(settings: EngineSettings) -> int:
    """Of a worker that computes while no other has anything to do: those of all of them.

    With ``deterministic`` its own, as always: the number of threads may decide about the last bits of a sum.
    """
    own = threads_per_worker(settings)
    return own if settings.deterministic or settings.device != "cpu" else own * max(1, num_workers(settings))


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
