"""Ten thousand requests leave the server as large as it was."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

from bench import models
from bench.service import Service
from ppo_client import RewardClient

NUM_REQUESTS = 10_000
NUM_THREADS = 8
NUM_EARLY = 2_000
"""Until then allocators and caches find their size."""

MOST_GROWTH = 0.05


def test_memory_is_flat_over_ten_thousand_requests() -> None:
    numbers = itertools.count()
    with Service(workers=1, threads=1, **{"engine.cache_items": 500}) as service:
        for folder in (models.small(0), models.text_rules()):
            service.deploy("soak", folder)
        service.set_label("soak", "stable", 1)
        with RewardClient(service.address) as client:

            def score(_: object) -> None:
                # No two are alike, and each run is another one, so that nothing is answered from memory.
                number = next(numbers)
                selector = ("soak@1", "soak@2", "soak@stable", "soak")[number % 4]
                run = f"run-{number // 100}"
                scores = client.score(selector, prompts=["p"] * 2, completions=[f"a {number}", f"b {number}"], run=run)
                assert len(scores.values) == 2

            sizes = []
            with ThreadPoolExecutor(NUM_THREADS) as pool:
                for num_requests in (NUM_EARLY, NUM_REQUESTS - NUM_EARLY):
                    list(pool.map(score, range(num_requests)))
                    sizes.append(service.resident_bytes())
    early, late = sizes
    assert late <= early * (1 + MOST_GROWTH), f"{early / 1e6:.1f} MB became {late / 1e6:.1f} MB"
