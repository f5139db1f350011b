"""`python -m bench.ppo.ours WARM_UP JOB`: our trainer on the toy task, step by step."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

from bench.ppo import toy
from bench.ppo.child import Conductor
from bench.ppo.sources import EvenTokens, SlowEvenTokens
from bench.ppo.toy import Job
from ppo_client.ppo import PPOConfig, PPOTrainer
from ppo_client.ppo.config_file import from_mapping

CHUNK = 8
"""Rows written together, then sent to a slow service, while the next are written"""


def settings(job: Job) -> PPOConfig:
    """The task's; what is not said has trl 1.12's value."""
    folder = Path(job.folder)
    is_overlapped = job.rewards == "overlapped"
    values: dict[str, dict[str, Any]] = {
        "policy": {"model": str(folder / "policy")},
        "critic": {"kind": job.critic},
        "data": {"prompts": str(folder / "prompts.jsonl")},
        "rollout": {
            "max_response_tokens": job.response_tokens,
            "min_response_tokens": job.response_tokens,
            "temperature": toy.TEMPERATURE,
            "micro_batch_size": CHUNK if is_overlapped else toy.BATCH_SIZE,
            "score_chunk_size": CHUNK if is_overlapped else toy.BATCH_SIZE,
        },
        "reward": {"model": "even@stable", "input": "token_ids"},
        "kl": {"coefficient": toy.KL_COEFFICIENT},
        "ppo": {
            "batch_size": toy.BATCH_SIZE,
            "num_epochs": toy.NUM_EPOCHS,
            "num_minibatches": toy.NUM_MINIBATCHES,
            "learning_rate": toy.LEARNING_RATE,
            "adam_epsilon": toy.ADAM_EPSILON,
            "max_grad_norm": math.inf,
        },
        "train": {
            "output": str(folder / "run"),
            "num_steps": job.num_steps,
            "seed": job.seed,
            "checkpoint_every_steps": 0,
            "tracking": ["jsonl"],
        },
    }
    return from_mapping(PPOConfig, values)


def run(job: Job, conductor: Conductor | None = None) -> None:
    """All steps of the job; each when the conductor says so."""
    output = Path(job.folder) / "run"
    shutil.rmtree(output, ignore_errors=True)
    slow = SlowEvenTokens(is_blocking=job.rewards == "blocking") if job.rewards != "at once" else None
    rewards = slow or EvenTokens()
    trainer = PPOTrainer(settings(job), rewards)
    for _ in range(job.num_steps):
        if conductor:
            conductor.wait()
        before_s = slow.blocked_s if slow else 0.0
        trainer.train_step()
        if conductor:
            blocked_s = (slow.blocked_s if slow else 0.0) - before_s
            conductor.answer(score=rewards.take_mean(), blocked_s=blocked_s, **_last_times(output / "metrics.jsonl"))
    trainer.run.close()


def _last_times(path: Path) -> dict[str, float]:
    """Where the step's time went, as the trainer wrote it down."""
    row = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    return {name: row[name] for name in ("generate_s", "evaluate_s", "reward_wait_s", "update_s", "step_s")}


if __name__ == "__main__":
    stage = Conductor()
    run(Job.from_json(sys.argv[1]))  # imports what is imported on first use
    stage.begin_memory()
    run(Job.from_json(sys.argv[2]), stage)
