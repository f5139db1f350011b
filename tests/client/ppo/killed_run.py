"""A training run that kills itself, without warning, at a given moment."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from tiny_policies import KINDS, FakeRewards, make_config

from ppo_client.ppo import PPOConfig, PPOTrainer, checkpoint

SETTINGS: dict[str, dict[str, Any]] = {
    "critic": {"kind": "separate", "learning_rate": 3e-3},
    "rollout": {"micro_batch_size": 4},
    "kl": {"controller": "adaptive", "horizon": 100.0},
    "reward": {"normalize_samples": 16},
    "train": {"num_steps": 5, "checkpoint_every_steps": 2, "samples_every_steps": 1, "seed": 5},
}
# Calls for scores: 4 to normalise, then 2 a step. Optimizer steps: 4 a step. Checkpoints after steps 2 and 4.
MOMENTS = ("rollout", "scoring", "update", "saving")


def settings(folder: Path, kind: str) -> PPOConfig:
    return make_config(folder, **SETTINGS, **KINDS[kind][1])


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DyingRewards(FakeRewards):
    """Dies at the second request of step 4: half of the rollout is done."""

    def submit(self, model: str, **texts: Any) -> Any:
        if self.num_calls == 4 + 3 * 2 + 1:
            die()
        return super().submit(model, **texts)


def run(folder: Path, kind: str, moment: str) -> None:
    torch.set_num_threads(1)
    rewards = DyingRewards() if moment == "scoring" else FakeRewards()
    trainer = PPOTrainer(settings(folder, kind), rewards)
    if moment == "rollout":
        policy = trainer.run.actor_critic.policy

        def second_half(*_: Any) -> None:
            if trainer.state.step == 3 and rewards.num_calls == 4 + 3 * 2 + 1:
                die()  # its first micro-batch is asked for, its second is being written

        policy.model.get_output_embeddings().register_forward_hook(second_half)
    if moment == "update":
        steps: list[int] = []

        def count(*_: Any) -> None:
            steps.append(1)
            if len(steps) == 3 * 4 + 2:
                die()

        trainer.run.updater.optimizer.optimizer.register_step_post_hook(count)
    if moment == "saving":
        save = torch.save

        def save_half(value: Any, path: Path) -> None:
            save(value, path)
            if "step-000004" in str(path):
                die()

        checkpoint.torch.save = save_half  # type: ignore[attr-defined]
    trainer.train()
