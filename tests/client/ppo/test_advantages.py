"""GAE against a hand-worked case and its limits; whitening against its statistics."""

from __future__ import annotations

import pytest
import torch

from ppo_client.ppo.advantages import explained_variance, gae, masked_mean_variance, whiten


def mask_of(*lengths: int, width: int) -> torch.Tensor:
    return torch.arange(width) < torch.tensor(lengths).unsqueeze(1)


def test_three_tokens_by_hand() -> None:
    rewards = torch.tensor([[0.0, 0.0, 1.0]])
    values = torch.tensor([[0.5, 0.25, 0.75]])
    # γ = 0.9, λ = 0.5:  δ = (0.9·0.25 − 0.5, 0.9·0.75 − 0.25, 1 − 0.75) = (−0.275, 0.425, 0.25)
    # A₂ = 0.25;  A₁ = 0.425 + 0.45·0.25 = 0.5375;  A₀ = −0.275 + 0.45·0.5375 = −0.033125
    advantages, returns = gae(rewards, values, mask_of(3, width=3), gamma=0.9, gae_lambda=0.5)
    assert advantages[0].tolist() == pytest.approx([-0.033125, 0.5375, 0.25], abs=1e-7)
    assert returns[0].tolist() == pytest.approx([0.466875, 0.7875, 1.0], abs=1e-7)


def test_lambda_one_gives_the_reward_to_go() -> None:
    rewards = torch.tensor([[1.0, -2.0, 0.5, 4.0]])
    values = torch.tensor([[3.0, 1.0, -1.0, 2.0]])
    _, returns = gae(rewards, values, mask_of(4, width=4), gamma=1.0, gae_lambda=1.0)
    assert returns[0].tolist() == pytest.approx([3.5, 2.5, 4.5, 4.0], abs=1e-6)


def test_lambda_zero_gives_the_one_step_error() -> None:
    rewards, values = torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor([[3.0, 1.0, -1.0]])
    advantages, _ = gae(rewards, values, mask_of(3, width=3), gamma=1.0, gae_lambda=0.0)
    assert advantages[0].tolist() == pytest.approx([1 + 1 - 3, -2 - 1 - 1, 0.5 + 1], abs=1e-6)


def test_padding_changes_nothing_whatever_it_holds() -> None:
    rewards, values = torch.randn(1, 3), torch.randn(1, 3)
    short = gae(rewards, values, mask_of(3, width=3), gamma=1.0, gae_lambda=0.95)
    garbage = torch.tensor([[float("inf"), float("nan")]])
    padded = gae(
        torch.cat([rewards, garbage], 1),
        torch.cat([values, garbage], 1),
        mask_of(3, width=5),
        gamma=1.0,
        gae_lambda=0.95,
    )
    for before, after in zip(short, padded, strict=True):
        assert torch.equal(after[:, :3], before)
        assert torch.equal(after[:, 3:], torch.zeros(1, 2))


@pytest.mark.parametrize("keep_mean", [True, False])
def test_whitening_counts_masked_tokens_only(keep_mean: bool) -> None:
    values, mask = torch.randn(6, 5) * 3 + 2, mask_of(1, 5, 3, 4, 2, 5, width=5)
    garbage = torch.where(mask, values, 1e6)
    whitened = whiten(garbage, mask, keep_mean=keep_mean)
    mean, variance = masked_mean_variance(whitened, mask)
    assert float(variance) == pytest.approx(1.0, abs=1e-4)
    assert float(mean) == pytest.approx(float(values[mask].mean()) if keep_mean else 0.0, abs=1e-4)
    assert torch.equal(whitened[~mask], torch.zeros(int((~mask).sum())))


def test_whitening_is_trl_s() -> None:
    """Formula of trl 1.12, `masked_whiten`: unbiased variance, 1e-8 under the root."""
    values, mask = torch.randn(4, 6), mask_of(6, 2, 5, 3, width=6)
    n = mask.sum()
    mean = (values * mask).sum() / n
    variance = (((values - mean) ** 2) * mask).sum() / n * n / (n - 1)
    expected = (values - mean) * torch.rsqrt(variance + 1e-8)
    assert torch.allclose(whiten(values, mask, keep_mean=False), expected * mask, atol=1e-6)


def test_whitening_equal_values_gives_no_infinity() -> None:
    mask = mask_of(3, 3, width=3)
    assert torch.equal(whiten(torch.ones(2, 3), mask, keep_mean=False), torch.zeros(2, 3))
    assert torch.equal(whiten(torch.ones(1, 1), mask_of(1, width=1), keep_mean=False), torch.zeros(1, 1))


def test_explained_variance() -> None:
    mask = mask_of(3, 2, width=3)
    returns = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 1e9]])
    assert explained_variance(returns, returns, mask) == pytest.approx(1.0)
    assert explained_variance(torch.zeros(2, 3), returns, mask) == pytest.approx(0.0)
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3.0)
    assert explained_variance(-returns / 100, returns / 100, mask) == pytest.approx(-3.0), "a share, on any scale"
    assert explained_variance(returns, torch.ones(2, 3), mask) == 0.0
