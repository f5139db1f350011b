"""Every setting of a step reaches the formula it is meant for: one step, computed again by hand in numpy."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import EOS_ID
from tiny_policies import FakeRewards, make_config, read_jsonl, save_policy

from ppo_client.ppo import PPOTrainer
from ppo_client.ppo.rollout import Rollout, RolloutWorker
from ppo_client.ppo.start import start_run
from ppo_client.ppo.update import Batch, Updater

GAMMA, LAMBDA, BETA, CLIP, PENALTY, HORIZON = 0.9, 0.6, 0.3, 0.4, 0.7, 4.0
SETTINGS: dict[str, dict[str, Any]] = {
    "kl": {"estimator": "k3", "coefficient": BETA, "controller": "adaptive", "target": 2.0, "horizon": HORIZON},
    "reward": {"clip": CLIP, "missing_eos_penalty": PENALTY},
    "ppo": {
        "gamma": GAMMA,
        "gae_lambda": LAMBDA,
        "whiten_rewards": True,
        "whiten_advantages": True,
        "adam_beta1": 0.8,
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-3,
        "weight_decay": 0.02,
        "schedule": "linear",
        "learning_rate": 1e-3,
    },
}


@dataclass
class Seen:
    """What went through the step."""

    rollouts: list[Rollout] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    minibatches: list[set[int]] = field(default_factory=list)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    seen = Seen()
    collect, update, select = RolloutWorker.collect, Updater.update, Batch.select

    def noting_collect(worker: RolloutWorker, *arguments: Any) -> Rollout:
        seen.rollouts.append(collect(worker, *arguments))
        return seen.rollouts[-1]

    def noting_update(updater: Updater, batch: Batch, step: int) -> Any:
        seen.batches.append(batch)
        return update(updater, batch, step)

    def noting_select(batch: Batch, rows: torch.Tensor) -> Batch:
        seen.minibatches.append(set(rows.tolist()))
        return select(batch, rows)

    monkeypatch.setattr(RolloutWorker, "collect", noting_collect)
    monkeypatch.setattr(Updater, "update", noting_update)
    monkeypatch.setattr(Batch, "select", noting_select)
    return seen


@pytest.fixture
def trainer(folder: Path, seen: Seen) -> PPOTrainer:
    """Two steps of a policy that differs from its reference, of which some responses end, with a critic that errs."""
    save_policy(folder / "reference", "llama", seed=7, scale=0.1)
    ids = [EOS_ID, *range(100, 140)]
    (folder / "policy" / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}), encoding="utf-8")
    policy = {"model": str(folder / "policy"), "reference": str(folder / "reference")}
    trainer = PPOTrainer(make_config(folder, policy=policy, **SETTINGS), FakeRewards())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainer.run.actor_critic.critic.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return trainer


def rows_of(values: torch.Tensor, mask: torch.Tensor) -> list[np.ndarray]:
    """Each row's tokens that count."""
    return [row[kept].double().numpy() for row, kept in zip(values, mask, strict=True)]


def whitened(rows: list[np.ndarray], *, mean: float | None = None) -> list[np.ndarray]:
    """With variance 1 over all tokens, and the given mean, or that they had."""
    tokens = np.concatenate(rows)
    shift = tokens.mean() if mean is None else mean
    return [(row - tokens.mean()) / np.sqrt(tokens.var(ddof=1) + 1e-8) + shift for row in rows]


def assert_as_by_hand(rollout: Rollout, batch: Batch, beta: float) -> None:
    """Advantages and returns of a step whose KL coefficient was `beta`."""
    mask = rollout.sequences.response_mask
    assert len(set(mask.sum(1).tolist())) > 2
    assert 0 < int(rollout.has_eos.sum()) < len(rollout.has_eos)
    assert float(rollout.scores.max()) > CLIP

    rewards = []
    log_probs, reference = rows_of(rollout.log_probs, mask), rows_of(rollout.reference_log_probs, mask)
    for row in range(len(mask)):
        log_ratio = reference[row] - log_probs[row]
        reward = -beta * (np.exp(log_ratio) - 1 - log_ratio)
        reward[-1] += min(float(rollout.scores[row]), CLIP) - (0.0 if rollout.has_eos[row] else PENALTY)
        rewards.append(reward)
    advantages, returns = [], []
    for reward, value in zip(whitened(rewards), rows_of(rollout.values, mask), strict=True):
        assert np.abs(value).max() > 0.05, "a critic that says 0 cannot tell gamma from lambda"
        advantage, ahead, value_ahead = np.zeros_like(reward), 0.0, 0.0
        for t in reversed(range(len(reward))):
            ahead = reward[t] + GAMMA * value_ahead - value[t] + GAMMA * LAMBDA * ahead
            value_ahead, advantage[t] = value[t], ahead
        advantages.append(advantage)
        returns.append(advantage + value)
    for found, expected in ((batch.advantages, whitened(advantages, mean=0.0)), (batch.returns, returns)):
        assert bool((found[~mask] == 0).all())
        for one, other in zip(rows_of(found, mask), expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)


def test_advantages_and_returns_are_those_of_the_settings(trainer: PPOTrainer, seen: Seen) -> None:
    trainer.train_step()
    adapted = trainer.state.kl_coefficient
    assert abs(adapted / BETA - 1) > 0.02
    trainer.train_step()
    for rollout, batch, beta in zip(seen.rollouts, seen.batches, (BETA, adapted), strict=True):
        assert_as_by_hand(rollout, batch, beta)


def test_the_coefficient_follows_the_kl_of_whole_episodes(folder: Path, trainer: PPOTrainer, seen: Seen) -> None:
    trainer.train_step()
    (rollout,) = seen.rollouts
    (row,) = read_jsonl(folder / "run" / "metrics.jsonl")
    mask = rollout.sequences.response_mask
    episodes = [tokens.sum() for tokens in rows_of(rollout.log_probs - rollout.reference_log_probs, mask)]
    assert row["kl"] == pytest.approx(np.mean(episodes), rel=1e-5)
    error = min(max(row["kl"] / 2.0 - 1, -0.2), 0.2)
    assert trainer.state.kl_coefficient == pytest.approx(BETA * (1 + error * 8 / HORIZON), rel=1e-9)
    assert trainer.state.kl_coefficient != BETA


def test_what_is_maximised_is_in_the_metrics(folder: Path, trainer: PPOTrainer, seen: Seen) -> None:
    trainer.train_step()
    (rollout,), (batch,) = seen.rollouts, seen.batches
    (row,) = read_jsonl(folder / "run" / "metrics.jsonl")
    mask, scores = rollout.sequences.response_mask, rollout.scores.double().numpy()
    shaped = np.clip(scores, -CLIP, CLIP) - PENALTY * ~rollout.has_eos.numpy()
    log_ratios = rows_of(rollout.reference_log_probs - rollout.log_probs, mask)
    penalties = [BETA * (np.exp(log_ratio) - 1 - log_ratio).sum() for log_ratio in log_ratios]
    assert row["shaped_score_mean"] == pytest.approx(shaped.mean(), abs=1e-5)
    assert 0 < row["score_clip_fraction"] < 1
    assert row["score_clip_fraction"] == pytest.approx((scores > CLIP).mean())
    assert row["rlhf_reward_mean"] == pytest.approx((shaped - penalties).mean(), abs=1e-4)
    assert row["value_mean"] == pytest.approx(np.concatenate(rows_of(rollout.values, mask)).mean(), abs=1e-5)
    assert row["return_mean"] == pytest.approx(np.concatenate(rows_of(batch.returns, mask)).mean(), abs=1e-5)


def test_the_optimizer_is_the_one_of_the_settings(folder: Path, trainer: PPOTrainer) -> None:
    rates: list[float] = []
    optimizer = trainer.run.updater.optimizer.optimizer
    optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    (group,) = optimizer.param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.95), 1e-3, 0.02)
    trainer.train()
    # Two steps of 2 epochs × 2 minibatches, linearly to zero.
    assert rates == pytest.approx([1e-3 * (1 - step / 8) for step in range(8)])
    logged = [row["learning_rate"] for row in read_jsonl(folder / "run" / "metrics.jsonl")]
    assert logged == pytest.approx([rates[3], rates[7]])


def test_each_epoch_sees_every_row_once_in_an_order_of_its_own(trainer: PPOTrainer, seen: Seen) -> None:
    trainer.train()
    epochs = [seen.minibatches[first : first + 2] for first in range(0, 8, 2)]
    assert all(one | other == set(range(8)) and not one & other for one, other in epochs)
    assert len({frozenset(map(frozenset, epoch)) for epoch in epochs}) > 2
    assert set(map(frozenset, epochs[0])) != set(map(frozenset, epochs[1]))


def test_the_seed_decides_prompts_responses_and_minibatches(folder: Path, seen: Seen) -> None:
    prompt, *_ = (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "one.jsonl").write_text(prompt, encoding="utf-8")
    for name in ("prompts", "one"):
        for index, seed in enumerate((1, 1, 2)):
            train = {"seed": seed, "output": str(folder / f"{name}-{index}")}
            data = {"prompts": str(folder / f"{name}.jsonl")}
            PPOTrainer(make_config(folder, data=data, train=train), FakeRewards()).train_step()
    prompts = [[record.prompt for record in rollout.records] for rollout in seen.rollouts[:3]]
    responses = [rollout.sequences.response_ids.tolist() for rollout in seen.rollouts[3:]]
    minibatches = [seen.minibatches[first : first + 4] for first in (0, 4, 8)]
    for first, again, other in (prompts, responses, minibatches):
        assert first == again
        assert first != other


@pytest.mark.parametrize(
    ("mixed_precision", "log_probs", "are_from_sampling"),
    [("no", "auto", True), ("bf16", "auto", False), ("no", "forward", False), ("bf16", "sampling", True)],
)
def test_log_probs_are_noted_while_sampling_in_full_precision(
    folder: Path, mixed_precision: str, log_probs: str, are_from_sampling: bool
) -> None:
    config = make_config(folder, rollout={"log_probs": log_probs}, train={"mixed_precision": mixed_precision})
    assert start_run(config, FakeRewards()).worker.log_probs_from_sampling == are_from_sampling
