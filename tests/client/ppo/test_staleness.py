"""Stale rollouts: scored while the update before them runs, weighted, logged, and bit-identical after a resume."""

from __future__ import annotations

import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_policies import KINDS, FakeRewards, make_config, read_jsonl, save_id_prompts, save_policy, without_times
from torch import Tensor

from ppo_client.ppo import PPOTrainer
from ppo_client.ppo.checkpoint import latest_checkpoint, load_tensors
from ppo_client.ppo.distributed import own_rows
from ppo_client.ppo.losses import policy_loss
from ppo_client.ppo.staleness import importance_weights, shared_out
from ppo_client.ppo.update import Batch, Updater, UpdateStatistics

STALE: dict[str, Any] = {"rollout": {"max_staleness": 1, "micro_batch_size": 4}}


def test_weights_are_the_truncated_ratio_and_one_where_nothing_was_written() -> None:
    log_probs, sampled = torch.log(torch.tensor([[0.5, 0.1, 0.9]])), torch.log(torch.tensor([[0.25, 0.4, 0.1]]))
    weights = importance_weights(log_probs, sampled, torch.tensor([[True, True, False]]), limit=1.5)
    assert torch.allclose(weights, torch.tensor([[1.5, 0.25, 1.0]]))
    padded = torch.tensor([[-math.inf, 0.0]])
    assert importance_weights(padded, padded, torch.tensor([[False, True]]), 2.0).tolist() == [[1.0, 1.0]]


def test_weights_scale_the_loss_of_their_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    new, old, advantages = (torch.randn(2, 3, generator=generator) for _ in range(3))
    mask = torch.tensor([[True, True, False], [True, False, False]])
    single = torch.tensor([[True, False, False], [False, False, False]])
    weights = torch.ones(2, 3)
    weights[0, 0] = 0.3
    plain, weighted = (float(policy_loss(new, old, advantages, mask, 0.2, w).loss) for w in (None, weights))
    one = float(policy_loss(new, old, advantages, single, 0.2).loss)
    assert weighted == pytest.approx(plain - 0.7 * one, rel=1e-5)


def test_the_next_step_is_asked_for_before_this_one_is_learnt(folder: Path) -> None:
    rewards = FakeRewards()
    trainer = PPOTrainer(make_config(folder, **STALE, train={"num_steps": 3}), rewards)
    calls: list[int] = []
    optimizer = trainer.run.updater.optimizer.optimizer
    optimizer.register_step_pre_hook(lambda *_: calls.append(rewards.num_calls))
    trainer.train()
    # 2 micro-batches a step, 4 optimizer steps; the last step has none to look ahead to.
    assert calls == [4] * 4 + [6] * 4 + [6] * 4
    rows = read_jsonl(folder / "run" / "metrics.jsonl")
    assert [row.get("staleness") for row in rows] == [None, 1, 1]
    assert rows[0]["first_max_log_ratio"] < 1e-4
    for row in rows[1:]:
        assert row["stale_max_log_ratio"] > 1e-3, "the policy has moved since"
        assert 0.5 < row["importance_weight_mean"] < 2
        assert row["first_max_log_ratio"] < 1e-4, "PPO's own ratio begins at 1"


def test_a_token_that_the_policy_would_not_write_any_more_is_logged(folder: Path) -> None:
    trainer = PPOTrainer(make_config(folder, **STALE), FakeRewards())
    trainer.train_step()
    assert trainer.run.started is not None
    for samples, _ in trainer.run.started.chunks:
        samples.log_probs.add_(200.0)  # e^-200 is 0 in float32
    trainer.train_step()
    row = read_jsonl(folder / "run" / "metrics.jsonl")[1]
    assert 200.0 < row["stale_max_log_ratio"] < 300.0
    assert row["importance_weight_mean"] == 0.0


def test_weights_are_truncated_where_the_settings_say(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[Batch] = []
    update = Updater.update

    def noting(updater: Updater, batch: Batch, step: int) -> UpdateStatistics:
        batches.append(batch)
        return update(updater, batch, step)

    monkeypatch.setattr(Updater, "update", noting)
    rollout = {**STALE["rollout"], "max_importance_weight": 1.01}
    PPOTrainer(make_config(folder, rollout=rollout), FakeRewards()).train()
    fresh, stale = batches
    assert fresh.weights is None
    assert stale.weights is not None
    assert float(stale.weights.max()) == pytest.approx(1.01), "some would be larger"
    assert float(stale.weights.min()) < 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_it_is_the_same_bit_by_bit(folder: Path, kind: str) -> None:
    family, settings = KINDS[kind]
    save_policy(folder / "policy", family)
    for name in ("whole", "resumed"):
        train = {"num_steps": 4, "checkpoint_every_steps": 2, "output": str(folder / name)}
        PPOTrainer(make_config(folder, **STALE, **settings, train=train), FakeRewards()).train()
    resumed = folder / "resumed"
    shutil.rmtree(resumed / "checkpoints" / "step-000004")
    shutil.rmtree(resumed / "policy")
    rewards = FakeRewards()
    PPOTrainer.resume(resumed, rewards).train()
    assert rewards.num_calls == 4, "what was written before is only scored again"
    one, other = (read_jsonl(folder / name / "metrics.jsonl") for name in ("whole", "resumed"))
    assert without_times(one) == without_times(other)
    for place in sorted((latest_checkpoint(folder / "whole") / "policy").glob("*.safetensors")):
        found = load_file(latest_checkpoint(resumed) / "policy" / place.name)
        assert all(torch.equal(value, found[name]) for name, value in load_file(place).items())


@pytest.mark.parametrize("num_processes", [2, 4])
def test_what_several_processes_wrote_is_gone_on_with_in_one(folder: Path, num_processes: int) -> None:
    for name in ("whole", "resumed"):
        train = {"num_steps": 4, "checkpoint_every_steps": 2, "output": str(folder / name)}
        PPOTrainer(make_config(folder, **STALE, train=train), FakeRewards()).train()
    resumed = folder / "resumed"
    shutil.rmtree(resumed / "checkpoints" / "step-000004")
    marks = resumed / "checkpoints" / "step-000002" / "processes.pt"
    (mark,) = load_tensors(marks)
    own = [own_rows(8, rank, num_processes) for rank in range(num_processes)]
    torch.save([{**mark, "started": shared_out(mark["started"], rows)} for rows in own], marks)
    PPOTrainer.resume(resumed, FakeRewards()).train()
    one, other = (read_jsonl(folder / name / "metrics.jsonl") for name in ("whole", "resumed"))
    assert [row["step"] for row in other if row.get("staleness")] == [2, 3, 4]
    for row, same in zip(one, other, strict=True):
        assert same["score_mean"] == pytest.approx(row["score_mean"], rel=1e-5), "the same responses"
        assert same["policy_loss"] == pytest.approx(row["policy_loss"], abs=1e-5)


def test_what_was_written_is_shared_out_in_the_order_of_the_batch() -> None:
    def chunk(*rows: int) -> dict[str, Tensor]:
        return {"has_eos": torch.tensor(rows)}

    chunks = [chunk(0, 1, 2), chunk(3), chunk(4, 5)]
    for sizes in ((6,), (3, 3), (2, 2, 2), (1,) * 6):
        bounds = [sum(sizes[:rank]) for rank in range(len(sizes) + 1)]
        shares = [shared_out(chunks, range(*pair)) for pair in pairwise(bounds)]
        rows = [[row for part in share for row in part["has_eos"].tolist()] for share in shares]
        assert rows == [list(range(*pair)) for pair in pairwise(bounds)]
    assert shared_out([], range(0, 6)) == [], "nothing was written ahead"


def test_it_learns(tmp_path: Path) -> None:
    save_policy(tmp_path / "policy", with_tokenizer=False, vocab_size=64, scale=0.05, eos_token_id=1, n_embd=32)
    save_id_prompts(tmp_path / "prompts.jsonl", vocab_size=64)
    config = make_config(
        tmp_path,
        rollout={"max_response_tokens": 8, "min_response_tokens": 8, "max_staleness": 1},
        kl={"coefficient": 0.002},
        ppo={"batch_size": 32, "num_epochs": 4, "learning_rate": 3e-3, "adam_epsilon": 1e-8},
        train={"num_steps": 20},
    )
    PPOTrainer(config, FakeRewards()).train()
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert rows[0]["score_mean"] == pytest.approx(0.5, abs=0.1)
    assert rows[-1]["score_mean"] > 0.75
