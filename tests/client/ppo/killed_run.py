"""A training run that kills itself, without warning, at a given moment: `python killed_run.py FOLDER MOMENT`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from tiny_policies import FakeRewards, make_config

from ppo_client.ppo import PPOTrainer, checkpoint

SETTINGS: dict[str, dict[str, Any]] = {
    "critic": {"kind": "separate"},
    "rollout": {"micro_batch_size": 4},
    "kl": {"controller": "adaptive", "horizon": 100.0},
    "reward": {"normalize_samples": 16},
    "train": {"num_steps": 5, "checkpoint_every_steps": 2, "samples_every_steps": 1, "seed": 5},
}
# Calls for scores: 4 to normalise, then 2 a step. Optimizer steps: 4 a step. Checkpoints after steps 2 and 4.
MOMENTS = ("scoring", "update", "saving")


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DyingRewards(FakeRewards):
    """Dies at the second request of step 4: half of the rollout is done."""

    def submit(self, model: str, **texts: Any) -> Any:
        if self.num_calls == 4 + 3 * 2 + 1:
            die()
        return super().submit(model, **texts)


def main(folder: Path, moment: str) -> None:
    trainer = PPOTrainer(make_config(folder, **SETTINGS), DyingRewards() if moment == "scoring" else FakeRewards())
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


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
