"""The score lands once, on the last token; normalisation, clipping and the missing EOS come in that order."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ppo_client.ppo.config import RewardConfig
from ppo_client.ppo.rewards import shaped_scores, token_rewards
from ppo_client.ppo.scores.normalize import ScoreNormalizer


@pytest.mark.parametrize("length", range(1, 7))
def test_the_score_is_on_the_last_token_alone(length: int) -> None:
    mask = torch.arange(6) < torch.tensor([[length]])
    rewards = token_rewards(torch.tensor([5.0]), torch.zeros(1, 6), mask, 0.1)
    assert rewards[0].tolist() == [5.0 if t == length - 1 else 0.0 for t in range(6)]


def test_the_sum_is_the_score_minus_the_penalty() -> None:
    mask = torch.arange(5) < torch.tensor([5, 2, 3]).unsqueeze(1)
    kl = torch.where(mask, torch.randn(3, 5), float("inf"))
    scores = torch.tensor([1.0, -2.0, 0.5])
    rewards = token_rewards(scores, kl, mask, 0.3)
    expected = scores - 0.3 * torch.where(mask, kl, 0.0).sum(1)
    assert torch.allclose(rewards.sum(1), expected, atol=1e-6)
    assert torch.equal(rewards[~mask], torch.zeros(int((~mask).sum())))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1.0, 3.0, 100.0]),
        ({"clip": 2.0}, [1.0, 2.0, 2.0]),
        ({"missing_eos_penalty": 0.5}, [1.0, 2.5, 99.5]),
        ({"missing_eos_score": -1.0}, [1.0, -1.0, -1.0]),
        ({"clip": 2.0, "missing_eos_penalty": 5.0}, [1.0, -3.0, -3.0]),
    ],
)
def test_clipping_and_the_missing_eos(settings: dict[str, Any], expected: list[float]) -> None:
    has_eos = torch.tensor([True, False, False])
    shaped = shaped_scores(torch.tensor([1.0, 3.0, 100.0]), has_eos, RewardConfig(**settings))
    assert shaped.tolist() == pytest.approx(expected)


def test_clipping_is_in_normalised_units() -> None:
    normalized = ScoreNormalizer(2.0, -20.0)(torch.tensor([10.0, 11.0]))
    shaped = shaped_scores(normalized, torch.tensor([True, True]), RewardConfig(clip=1.5))
    assert shaped.tolist() == [0.0, 1.5]
