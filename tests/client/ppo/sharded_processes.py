"""Runs of every kind with FSDP: `torchrun --nproc-per-node 2 sharded_processes.py FOLDER [resume]`.

accelerate knows FSDP on accelerators alone, torch on CPUs, too. Told that these processes have one, it does there what
it would do elsewhere.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from client.ppo.in_two import leave
from client.ppo.sharded_settings import SHARDED, settings
from tiny_policies import FakeRewards

from ppo_client.client.scores import Content
from ppo_client.ppo import PPOTrainer

_init = AcceleratorState.__init__


def init(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
    _init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def begin(folder: Path, kind: str) -> PPOTrainer:
    """A run before its first step; of "saved-first" it goes on from a checkpoint of that moment."""
    if kind != "saved-first":
        return PPOTrainer(settings(folder, kind), FakeRewards())
    with suppress(ConnectionError):
        PPOTrainer(settings(folder, kind), FakeRewards(score=refuse)).train()
    return PPOTrainer.resume(folder / "run", FakeRewards())


def refuse(prompt: Content, completion: Content) -> float:
    raise ConnectionError


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    }
    AcceleratorState.__init__ = init  # type: ignore[method-assign]
    for kind in SHARDED:
        AcceleratorState._reset_state(reset_partial_state=True)
        folder = Path(sys.argv[1]) / kind
        if sys.argv[2:] == ["resume"]:
            PPOTrainer.resume(folder / "run", FakeRewards()).train()
        else:
            trainer = begin(folder, kind)
            shards = [parameter.to_local() for parameter in trainer.run.updater.model.parameters()]
            whole = list(trainer.run.actor_critic.parameters())
            share = sum(p.numel() for p in shards) / sum(p.numel() for p in whole)
            sys.stdout.write(f"\n{kind} {share}\n")  # in one piece: two processes write
            trainer.train()
    leave()
