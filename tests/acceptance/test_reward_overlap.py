"""How much of a reward service's time a run waits for: 20 ms a call and 10 ms a text, 64 texts, generation ≥ 1 s.

The wait is held against what one blocking call takes, the step against generation and update of the same step (the
reference's and the critic's passes are the rest), so that a busy machine weighs on both sides.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from rm_api.v1 import scoring_pb2, scoring_pb2_grpc
from tiny_policies import make_config, read_jsonl
from transformers import GPT2Config, GPT2LMHeadModel

from ppo_client import RewardClient
from ppo_client.ppo import PPOTrainer

NUM_TEXTS, NUM_STEPS, VOCAB_SIZE = 64, 4, 2000


class Slow(scoring_pb2_grpc.ScoringServiceServicer):
    """Computes one call at a time, as one device does."""

    def __init__(self) -> None:
        self._device = threading.Lock()

    def Score(self, request: scoring_pb2.ScoreRequest, context: grpc.ServicerContext) -> scoring_pb2.ScoreResponse:
        response = scoring_pb2.ScoreResponse(
            model="even", version=1, digest="1" * 64, transform=scoring_pb2.TRANSFORM_RULE
        )
        for group in request.groups:
            for completion in group.completions:
                ids = completion.token_ids.ids
                share = sum(token % 2 == 0 for token in ids) / len(ids)
                response.results.add(score=scoring_pb2.Score(value=share), num_tokens=len(ids))
        with self._device:
            time.sleep(0.020 + 0.010 * len(response.results))
        return response


@pytest.fixture(scope="module")
def client() -> Iterator[RewardClient]:
    server = grpc.server(ThreadPoolExecutor(max_workers=16))
    scoring_pb2_grpc.add_ScoringServiceServicer_to_server(Slow(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with RewardClient(f"127.0.0.1:{port}") as client:
        yield client
    server.stop(None)


def measured(folder: Path, client: RewardClient, name: str, **rollout: Any) -> dict[str, float]:
    """Medians over the steps between the first and the last."""
    config = make_config(
        folder,
        rollout={"max_response_tokens": 80, "min_response_tokens": 80, **rollout},
        reward={"model": "even@1"},
        ppo={"batch_size": NUM_TEXTS, "num_epochs": 4, "num_minibatches": 2},
        train={"output": str(folder / name), "num_steps": NUM_STEPS, "checkpoint_every_steps": 0},
    )
    PPOTrainer(config, client).train()
    rows = read_jsonl(folder / name / "metrics.jsonl")[1:-1]
    for row in rows:
        row["step_over_alone"] = row["step_s"] / (row["generate_s"] + row["update_s"])
    return {
        key: median(row[key] for row in rows) for key in ("generate_s", "reward_wait_s", "step_s", "step_over_alone")
    }


def test_the_reward_is_nearly_free(tmp_path: Path, client: RewardClient) -> None:
    torch.manual_seed(0)
    sizes = {"n_layer": 6, "n_embd": 384, "n_head": 6, "n_positions": 96}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB_SIZE, bos_token_id=None, eos_token_id=None, **sizes))
    model.save_pretrained(tmp_path / "policy")
    prompts = np.random.default_rng(0).integers(0, VOCAB_SIZE, (256, 8)).tolist()
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": row}) + "\n" for row in prompts))

    texts: list[Any] = [[2, 3, 4]] * NUM_TEXTS
    client.score("even@1", prompts=texts, completions=texts)
    began = time.perf_counter()
    client.score("even@1", prompts=texts, completions=texts)
    blocking_s = time.perf_counter() - began

    whole = measured(tmp_path, client, "whole", micro_batch_size=NUM_TEXTS)
    chunks = measured(tmp_path, client, "chunks", micro_batch_size=16)
    stale = measured(tmp_path, client, "stale", micro_batch_size=NUM_TEXTS, max_staleness=1)
    print(f"\none blocking call: {1000 * blocking_s:.0f} ms")
    for name, found in (("one micro-batch", whole), ("micro-batches of 16", chunks), ("one step stale", stale)):
        print(
            f"{name}: generation {found['generate_s']:.2f} s, wait {1000 * found['reward_wait_s']:.0f} ms = "
            f"{found['reward_wait_s'] / blocking_s:.2f} of the blocking call; step {found['step_s']:.2f} s = "
            f"{found['step_over_alone']:.2f} of generation and update"
        )
    assert whole["generate_s"] >= 1.0
    assert chunks["reward_wait_s"] <= 0.1 * blocking_s
    assert stale["reward_wait_s"] <= 0.1 * blocking_s
    assert chunks["step_over_alone"] <= 1.15
