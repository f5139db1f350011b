"""One run in two processes: `torchrun --nproc-per-node 2 two_processes.py FOLDER [resume]`."""

from __future__ import annotations

import sys
from pathlib import Path

from tiny_policies import FakeRewards, make_config

from ppo_client.ppo import PPOTrainer

SETTINGS = {
    "kl": {"controller": "adaptive", "horizon": 100.0},
    "reward": {"normalize_samples": 16},
    "ppo": {"batch_size": 8, "num_minibatches": 2, "micro_batch_size": 1, "whiten_rewards": True},
    "train": {"num_steps": 3, "checkpoint_every_steps": 2},
}

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if sys.argv[2:] == ["resume"]:
        PPOTrainer.resume(folder / "run", FakeRewards()).train()
    else:
        PPOTrainer(make_config(folder, **SETTINGS), FakeRewards()).train()
