"""Rewards that say nothing, the opposite, or no number at all: what a run does with each."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from statistics import fmean, variance
from typing import Any

import pytest
import torch
from tiny_policies import FakeRewards, even_share, make_config, make_scores, read_jsonl, save_id_prompts, save_policy
from torch import Tensor
from transformers import AutoModelForCausalLM

from ppo_client.client.errors import NonFiniteScore
from ppo_client.ppo import PPOTrainer
from ppo_client.ppo.checkpoint import latest_checkpoint
from ppo_client.ppo.errors import InvalidScores, RewardServiceAway

Score = Callable[[Any, Any], float]


def trained(
    folder: Path, rewards: FakeRewards, learning_rate: float, kl_coefficient: float, num_steps: int = 16, seed: int = 1
) -> tuple[list[float], list[dict[str, Any]]]:
    """The share of even tokens in what was written, step by step, and the rows of the log."""
    folder.mkdir(exist_ok=True)
    save_policy(folder / "policy", with_tokenizer=False, vocab_size=64, scale=0.05, eos_token_id=1, n_embd=32)
    save_id_prompts(folder / "prompts.jsonl", vocab_size=64)
    config = make_config(
        folder,
        rollout={"max_response_tokens": 8, "min_response_tokens": 8},
        kl={"coefficient": kl_coefficient},
        ppo={"batch_size": 32, "num_epochs": 4, "learning_rate": learning_rate, "adam_epsilon": 1e-8},
        train={"num_steps": num_steps, "seed": seed},
    )
    PPOTrainer(config, rewards).train()
    shares = [even_share(prompt, completion) for prompt, completion in rewards.asked]
    by_step = [sum(shares[first : first + 32]) / 32 for first in range(0, len(shares), 32)]
    return by_step, read_jsonl(folder / "run" / "metrics.jsonl")


def late(shares: list[float]) -> float:
    """Mean over the last quarter: 128 episodes of 8 tokens, so chance alone gives 0.5 ± 0.016."""
    return sum(shares[-4:]) / 4


def negated(prompt: Any, completion: Any) -> float:
    return -even_share(prompt, completion)


def constant(seed: int) -> Score:
    return lambda prompt, completion: 0.7


def dice(seed: int) -> Score:
    numbers = random.Random(seed)
    return lambda prompt, completion: numbers.random()


@pytest.mark.parametrize(
    ("score", "low", "high"),
    [
        (even_share, 0.7, 1.0),
        (negated, 0.0, 0.3),
    ],
    ids=["as it is", "negated"],
)
def test_what_is_rewarded_is_learnt(tmp_path: Path, score: Score, low: float, high: float) -> None:
    shares, _ = trained(tmp_path, FakeRewards(score=score), learning_rate=3e-3, kl_coefficient=0.02)
    assert shares[0] == pytest.approx(0.5, abs=0.1)
    assert low <= late(shares) <= high


def movement(folder: Path) -> Tensor:
    """How training changed the log-probabilities of the next token, at some places; a direction of length 1."""
    ids = torch.randint(2, 64, (32, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = (
            AutoModelForCausalLM.from_pretrained(place)(ids).logits.log_softmax(-1)
            for place in (folder / "policy", folder / "run" / "policy")
        )
    moved = (after - before).flatten()
    return moved / moved.norm()


def alike(tmp_path: Path, make_score: Callable[[int], Score], num_steps: int) -> tuple[float, list[dict[str, Any]]]:
    """The cosine between what two runs of different seeds did to one policy, and the log of the first."""
    logs = []
    for seed in (1, 2):
        rewards = FakeRewards(score=make_score(seed))
        _, rows = trained(
            tmp_path / str(seed), rewards, learning_rate=1e-3, kl_coefficient=0.1, num_steps=num_steps, seed=seed
        )
        logs.append(rows)
    return float(movement(tmp_path / "1") @ movement(tmp_path / "2")), logs[0]


def test_what_a_reward_says_moves_all_runs_alike(tmp_path: Path) -> None:
    cosine, _ = alike(tmp_path, lambda seed: even_share, num_steps=16)
    assert cosine > 0.6


@pytest.mark.parametrize("make_score", [constant, dice])
def test_noise_moves_each_run_elsewhere_and_none_away(tmp_path: Path, make_score: Callable[[int], Score]) -> None:
    """Whitening makes noise as loud as a reward, so the policy does move; what must not be is a drift: a direction
    that all runs take, or a distance that goes on growing where the KL penalty should hold it."""
    cosine, rows = alike(tmp_path, make_score, num_steps=48)
    assert cosine < 0.5
    middle, last = ([row["kl"] for row in rows[begin : begin + 16]] for begin in (16, 32))
    noise = math.sqrt((variance(middle) + variance(last)) / 16)
    assert fmean(last) < fmean(middle) + 3 * noise


class Broken(FakeRewards):
    """Good for two steps, then broken in its own way."""

    def __init__(self, answer: Callable[[int], Any]) -> None:
        super().__init__()
        self._answer = answer

    def submit(self, model: str, **texts: Any) -> Any:
        good = super().submit(model, **texts)
        if self.num_calls <= 2:
            return good
        future: Future[Any] = Future()
        answer = self._answer(len(texts["completions"]))
        if isinstance(answer, Exception):
            future.set_exception(answer)
        elif answer is not None:
            future.set_result(make_scores(answer))
        return future


@pytest.mark.parametrize(
    ("name", "answer", "error"),
    [
        ("NaN", lambda count: [math.nan] * count, InvalidScores),
        ("failing", lambda count: NonFiniteScore("the version gave NaN"), NonFiniteScore),
        ("slow", lambda count: None, RewardServiceAway),
    ],
)
def test_what_is_no_score_stops_the_run_by_name(folder: Path, name: str, answer: Any, error: type[Exception]) -> None:
    reward = {"timeout_s": 0.2, "patience_s": 0.0}
    config = make_config(folder, reward=reward, train={"num_steps": 4, "checkpoint_every_steps": 0})
    trainer = PPOTrainer(config, Broken(answer))
    with pytest.raises(error):
        trainer.train()
    assert latest_checkpoint(folder / "run").name == "step-000002"
    assert len(read_jsonl(folder / "run" / "metrics.jsonl")) == 2
    assert all(bool(parameter.isfinite().all()) for parameter in trainer.run.actor_critic.parameters())
