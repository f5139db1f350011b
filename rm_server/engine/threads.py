"""With how many threads the workers compute: what the settings say, and what they leave to this machine."""

from __future__ import annotations

from rm_server.backends.device import num_cores
from rm_server.config import EngineSettings


def threads_per_worker(settings: EngineSettings) -> int:
    """As set, or the cores divided between the workers."""
    return settings.threads_per_worker or max(1, num_cores() // max(1, settings.workers))


def threads_alone(settings: EngineSettings) -> int:
    """Of a worker that computes while no other has anything to do: on a CPU those of all of them, up to the cores.

    With ``deterministic`` its own, as always: the number of threads may decide about the last bits of a sum.
    """
    own = threads_per_worker(settings)
    if settings.deterministic or settings.device != "cpu":
        return own
    return max(own, min(own * settings.workers, num_cores()))
