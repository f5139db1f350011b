"""What the runs with FSDP and with DeepSpeed are, and the runs without that they are held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_policies import make_config

from ppo_client.ppo import PPOConfig

SHARDED: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "decoder": ("llama", {}),
    # So that nothing is clipped: DeepSpeed clips policy and critic by one norm.
    "tied": ("gpt2", {"critic": {"kind": "separate"}, "ppo": {"max_grad_norm": 1e6}}),
    "two-rates": ("llama", {"critic": {"kind": "separate", "learning_rate": 3e-3}}),
    "encoder-decoder": ("t5", {"policy": {"gradient_checkpointing": True}}),
    "lora": ("llama", {"lora": {"rank": 2}}),
    "stopped": ("llama", {"ppo": {"stop_kl": 1e-6}}),
    "saved-first": ("llama", {}),
    "bf16": ("llama", {"train": {"mixed_precision": "bf16"}}),
}
"""A family, and settings"""
_SHARED_SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": {"batch_size": 8, "num_minibatches": 2, "micro_batch_size": 1},
    "train": {"num_steps": 3, "checkpoint_every_steps": 2},
}


def settings(folder: Path, kind: str) -> PPOConfig:
    own = SHARDED[kind][1]
    return make_config(folder, **{n: {**_SHARED_SETTINGS.get(n, {}), **own.get(n, {})} for n in own | _SHARED_SETTINGS})
