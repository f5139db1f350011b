"""Runs of every kind in two processes: `torchrun --nproc-per-node 2 two_processes.py FOLDER [resume]`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from client.ppo.in_two import leave
from tiny_policies import KINDS, FakeRewards, PickyRewards, make_config

from ppo_client.ppo import PPOConfig, PPOTrainer

SETTINGS: dict[str, dict[str, Any]] = {
    "kl": {"controller": "adaptive", "horizon": 100.0},
    "reward": {"normalize_samples": 16},
    "ppo": {"batch_size": 8, "num_minibatches": 2, "micro_batch_size": 1, "whiten_rewards": True},
    "train": {"num_steps": 3, "checkpoint_every_steps": 2},
}
CRITICS: dict[str, dict[str, Any]] = {
    "decoder": {"kind": "shared"},
    "encoder-decoder": {"kind": "separate", "learning_rate": 3e-3},
    "lora": {"kind": "separate"},
}


def settings(folder: Path, kind: str) -> PPOConfig:
    config = make_config(folder, **SETTINGS, critic=CRITICS[kind], **KINDS[kind][1])
    # Where one is refused, each process takes part in the minibatches all the same.
    return replace(config, reward=replace(config.reward, on_failed_item="drop")) if kind == "decoder" else config


def rewards(kind: str) -> FakeRewards:
    return PickyRewards() if kind == "decoder" else FakeRewards()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for kind in KINDS:
        AcceleratorState._reset_state(reset_partial_state=True)
        folder = Path(sys.argv[1]) / kind
        if sys.argv[2:] == ["resume"]:
            PPOTrainer.resume(folder / "run", rewards(kind)).train()
        else:
            PPOTrainer(settings(folder, kind), rewards(kind)).train()
    leave()
