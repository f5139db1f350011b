"""The task both trainers get: GPT-2, 4 layers of 128, learns to write even token ids. 0.5 is chance, 1 the best."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

PROMPT_TOKENS = 8
NUM_PROMPTS = 512
BATCH_SIZE = 64
NUM_EPOCHS = 4
NUM_MINIBATCHES = 4
LEARNING_RATE = 2e-3
ADAM_EPSILON = 1e-8
KL_COEFFICIENT = 0.002
TEMPERATURE = 0.7


@dataclass(frozen=True)
class Job:
    """What a trainer's process is to do."""

    folder: str
    """With `policy/`, `prompts.jsonl`, and room for what the trainer writes"""
    seed: int
    num_steps: int
    """The learning rate falls to 0 over these"""
    critic: str = "separate"
    vocab_size: int = 2000
    response_tokens: int = 24
    num_positions: int = 64
    rewards: str = "at once"
    """Or, for our trainer, from a slow service: "overlapped", or "blocking", as if the trainer waited for each call"""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        return cls(**json.loads(text))


def prepare(job: Job) -> Job:
    """Puts the starting policy and the prompts into the job's folder."""
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(job.seed)
    sizes = {"n_layer": 4, "n_embd": 128, "n_head": 4, "n_positions": job.num_positions}
    config = GPT2Config(vocab_size=job.vocab_size, bos_token_id=None, eos_token_id=None, **sizes)
    GPT2LMHeadModel(config).save_pretrained(folder / "policy")
    rows = np.random.default_rng(job.seed).integers(0, job.vocab_size, (NUM_PROMPTS, PROMPT_TOKENS)).tolist()
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
    return job


def prompts(job: Job) -> list[list[int]]:
    """Token ids."""
    lines = (Path(job.folder) / "prompts.jsonl").read_text().splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def even_share(ids: Sequence[int]) -> float:
    """The score of a response."""
    return sum(token % 2 == 0 for token in ids) / len(ids)
