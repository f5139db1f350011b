"""Runs with DeepSpeed, as the environment configures it: `torchrun --nproc-per-node 2 zero_processes.py FOLDER KIND…`.

A run that is there goes on. DeepSpeed has CPUs among its accelerators; accelerate starts it on the others alone, for
want of a backend, and is told one.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from client.ppo.in_two import leave
from client.ppo.sharded_settings import settings
from client.ppo.test_update import make_batch
from tiny_policies import FakeRewards

from ppo_client.ppo import PPOTrainer
from ppo_client.ppo.errors import NonFiniteUpdate


def refuse_an_update(trainer: PPOTrainer) -> None:
    """The run that follows shows that it has changed nothing."""
    batch = make_batch(trainer.run)
    poisoned = replace(batch, advantages=torch.full_like(batch.advantages, float("nan")))
    with pytest.raises(NonFiniteUpdate, match="the parameters were left as they were"):
        trainer.run.updater.update(poisoned, step=1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.NO)  # type: ignore[method-assign]
    for kind in sys.argv[2:]:
        AcceleratorState._reset_state(reset_partial_state=True)
        folder = Path(sys.argv[1]) / kind
        if (folder / "run").exists():
            PPOTrainer.resume(folder / "run", FakeRewards()).train()
            continue
        trainer = PPOTrainer(settings(folder, kind), FakeRewards())
        if kind == "decoder":
            refuse_an_update(trainer)
        engine = trainer.run.updater.model
        trainer.train()
        shares = [state["exp_avg"].numel() for state in engine.optimizer.optimizer.state.values()]
        num_trained = sum(p.numel() for p in trainer.run.actor_critic.parameters() if p.requires_grad)
        sys.stdout.write(f"\n{kind} {sum(shares) / num_trained}\n")  # in one piece: two processes write
    leave()
