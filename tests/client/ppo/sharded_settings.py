"""What the runs with FSDP are, and the runs without that they are held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_policies import make_config

from ppo_client.ppo import PPOConfig

SHARDED: dict[str, tuple[str, dict[str, Any]]] = {
    "decoder": ("llama", {}),
    "tied": ("gpt2", {"critic": {"kind": "separate"}}),
    "encoder-decoder": ("t5", {"policy": {"gradient_checkpointing": True}}),
    "lora": ("llama", {"lora": {"rank": 2}}),
}
"""A family, and settings"""


def settings(folder: Path, kind: str) -> PPOConfig:
    ppo = {"batch_size": 8, "num_minibatches": 2, "micro_batch_size": 1}
    train = {"num_steps": 3, "checkpoint_every_steps": 2}
    return make_config(folder, ppo=ppo, train=train, **SHARDED[kind][1])
