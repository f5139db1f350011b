"""A gradient that is not finite ends a run: what is saved then, and what the message says can be done."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from tiny_policies import FakeRewards, make_config, read_jsonl, without_times

from ppo_client.ppo import PPOTrainer
from ppo_client.ppo.checkpoint import saved_steps
from ppo_client.ppo.errors import NonFiniteUpdate
from ppo_client.ppo.stepping import PlainStepper


def poison(optimizer_step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes one gradient of the run one that is not finite; the steps are counted from 1, over the whole run."""
    make, made = PlainStepper.step, 0

    def step(stepper: PlainStepper, rate: float) -> float:
        nonlocal made
        made += 1
        if made == optimizer_step:
            next(p.grad for p in stepper.model.parameters() if p.grad is not None).fill_(math.nan)
        return make(stepper, rate)

    monkeypatch.setattr(PlainStepper, "step", step)


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_a_broken_first_gradient_leaves_the_state_before_the_step(
    folder: Path, max_staleness: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "rollout": {"max_staleness": max_staleness},
        "train": {"num_steps": 4, "checkpoint_every_steps": 2, "keep_checkpoints": 1},
    }
    expected = PPOTrainer(make_config(folder, **settings), FakeRewards())
    expected.train()
    rows = without_times(read_jsonl(folder / "run" / "metrics.jsonl"))
    shutil.rmtree(folder / "run")
    trainer = PPOTrainer(make_config(folder, **settings), FakeRewards())
    poison(13, monkeypatch)
    with pytest.raises(NonFiniteUpdate) as caught:
        trainer.train()
    says = r"^step 4: .* norm is nan in optimizer step 1 of 4; .*step-000003 is the state before it.* kl\.coefficient"
    assert re.search(says, str(caught.value))
    assert "remove it and resume, after step 2, with a smaller ppo.learning_rate" in str(caught.value)
    assert saved_steps(folder / "run") == [2, 3], "what to go back to is kept"
    again = PPOTrainer.resume(folder / "run", FakeRewards())
    again.train()
    assert without_times(read_jsonl(folder / "run" / "metrics.jsonl")) == rows
    ours, theirs = (one.run.actor_critic.parameters() for one in (again, expected))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("every", "says"), [(2, "resume, after step 2, with a smaller"), (0, "start again with a sm")])
def test_a_broken_later_gradient_leaves_the_last_checkpoint(
    folder: Path, every: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"num_steps": 4, "checkpoint_every_steps": every}
    trainer = PPOTrainer(make_config(folder, train=train), FakeRewards())
    poison(15, monkeypatch)
    with pytest.raises(NonFiniteUpdate) as caught:
        trainer.train()
    assert "optimizer step 3 of 4; " in str(caught.value)
    assert f"The 2 before it are not saved: {says}" in str(caught.value)
    assert saved_steps(folder / "run") == ([2] if every else [])
