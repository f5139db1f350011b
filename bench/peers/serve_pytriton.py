"""PyTriton: a Python function behind Triton's dynamic batcher; an item is a row of a request."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from bench.peers.scorer import MAX_PADDED_ITEMS, scorer

if __name__ == "__main__":
    score = scorer()

    @batch
    def infer(text: Any) -> dict[str, Any]:
        """Scores a batch of texts, shape (num_items, 1)."""
        texts = [row[0].decode() for row in text]
        return {"score": np.array(score(texts), np.float32).reshape(-1, 1)}

    config = TritonConfig(
        http_address="127.0.0.1", http_port=int(os.environ["BENCH_PORT"]), allow_grpc=False, allow_metrics=False
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="reward",
            infer_func=infer,
            inputs=[Tensor(name="text", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="score", dtype=np.float32, shape=(1,))],
            config=ModelConfig(max_batch_size=MAX_PADDED_ITEMS),
        )
        triton.serve()
