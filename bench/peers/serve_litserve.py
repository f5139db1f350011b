"""LitServe: each request brings some texts; several requests make a batch."""

# No `from __future__ import annotations`: LitServe reads the annotation of `decode_request` itself.
import os
from typing import Any

import litserve

from bench.peers.scorer import scorer

MAX_BATCH_REQUESTS = 16


class RewardApi(litserve.LitAPI):
    """Flattens the requests of a batch, scores, and deals the scores out again."""

    def setup(self, device: str) -> None:
        """In each worker."""
        self.score = scorer()

    def decode_request(self, request: dict[str, Any]) -> list[str]:
        """The texts of one request."""
        return list(request["query"])

    def predict(self, requests: list[list[str]]) -> list[list[float]]:
        """A list of scores for each request."""
        scores = iter(self.score([text for texts in requests for text in texts]))
        return [[next(scores) for _ in texts] for texts in requests]

    def encode_response(self, output: list[float]) -> dict[str, list[float]]:
        """The answer to one request."""
        return {"rewards": output}


if __name__ == "__main__":
    api = RewardApi(max_batch_size=MAX_BATCH_REQUESTS)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=int(os.environ["BENCH_WORKERS"]), timeout=300, track_requests=False
    )
    server.run(host="127.0.0.1", port=int(os.environ["BENCH_PORT"]), generate_client_file=False, log_level="warning")
