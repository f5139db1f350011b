"""MOSEC: each request brings some texts; several requests make a batch."""

from __future__ import annotations

import os
from typing import Any

import mosec

from bench.peers.scorer import scorer

MAX_BATCH_REQUESTS = 16


class Reward(mosec.Worker):
    """Flattens the requests of a batch, scores, and deals the scores out again."""

    def __init__(self) -> None:
        super().__init__()
        self.score = scorer()

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A list of scores for each request."""
        scores = iter(self.score([text for request in data for text in request["query"]]))
        return [{"rewards": [next(scores) for _ in request["query"]]} for request in data]


if __name__ == "__main__":
    # Address, port and timeout come from MOSEC_ADDRESS and the like.
    os.environ |= {"MOSEC_ADDRESS": "127.0.0.1", "MOSEC_PORT": os.environ["BENCH_PORT"], "MOSEC_TIMEOUT": "300000"}
    server = mosec.Server()
    server.append_worker(Reward, num=int(os.environ["BENCH_WORKERS"]), max_batch_size=MAX_BATCH_REQUESTS, timeout=300)
    server.run()
