"""Settings: small frozen dataclasses with defaults; each part of the server gets only its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How loaded versions compute, and how much work may wait for them.

    ``device``: where the workers compute, for example ``cpu`` or ``cuda:0``.
    ``workers``: processes that compute; 0 computes in a thread of the server's own process.
    ``threads_per_worker``: threads of each worker; 0: the cores, divided between the workers.
    ``precision``: for a load that names none. ``prepack``: oneDNN weights on CPU. ``deterministic``: bit-identical
    scores whatever the batch.
    ``max_batch_tokens``, ``max_batch_items``: the budget of one forward pass; a longer item goes alone.
    ``batches_in_flight``: per worker; the second one lies in its pipe while the first computes.
    ``max_queued_items``, ``max_queued_tokens``: beyond them a call is refused at once.
    ``max_yield_s``: for how long a large call lets later, smaller ones of its run go first, at most.
    ``run_weights``: a run's share of the turns; 1.0 where it is not named.
    ``encode_threads``: threads that turn text into tokens. ``cache_items``: scores kept in the result cache; 0: none.
    """

    device: str = "cpu"
    workers: int = 1
    threads_per_worker: int = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    prepack: bool = True
    deterministic: bool = False
    max_batch_tokens: int = 4096
    max_batch_items: int = 512
    batches_in_flight: int = 2
    max_queued_items: int = 16_384
    max_queued_tokens: int = 2_000_000
    max_yield_s: float = 5.0
    run_weights: Mapping[str, float] = field(default_factory=dict)
    encode_threads: int = 2
    cache_items: int = 100_000


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """What one call may carry. ``max_items_per_request``: completions of all its groups together."""

    max_items_per_request: int = 4096


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Training runs. ``lease_s``: a lease ends so long after the last sign of life.

    ``max_known_runs``: beyond it, the run that was seen longest ago and has no lease is forgotten.
    """

    lease_s: float = 900.0
    max_known_runs: int = 10_000
