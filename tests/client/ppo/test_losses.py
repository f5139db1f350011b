"""Losses against closed form, gradients included; micro-batches add up."""

from __future__ import annotations

import math

import pytest
import torch

from ppo_client.ppo.losses import policy_loss, value_loss

ALL = torch.ones(1, 4, dtype=torch.bool)


def test_policy_loss_by_hand() -> None:
    ratios, advantages = torch.tensor([[1.5, 0.5, 1.5, 0.5]]), torch.tensor([[2.0, 2.0, -2.0, -2.0]])
    loss = policy_loss(ratios.log(), torch.zeros(1, 4), advantages, ALL, 0.2)
    # max(−A·r, −A·clip(r)):  −2·1.2, −2·0.5, 2·1.5, 2·0.8
    assert float(loss.loss) == pytest.approx(-2.4 - 1.0 + 3.0 + 1.6, abs=1e-6)
    assert int(loss.num_clipped) == 2
    assert float(loss.ratio) == pytest.approx(4.0, abs=1e-6)
    assert float(loss.approx_kl) == pytest.approx(sum(r - 1 - math.log(r) for r in (1.5, 0.5, 1.5, 0.5)), abs=1e-6)
    assert float(loss.max_log_ratio) == pytest.approx(math.log(2), abs=1e-6)


def test_the_gradient_is_zero_where_the_ratio_is_clipped() -> None:
    log_probs = torch.tensor([[1.5, 0.5, 1.5, 0.5]]).log().requires_grad_()
    advantages = torch.tensor([[2.0, 2.0, -2.0, -2.0]])
    policy_loss(log_probs, torch.zeros(1, 4), advantages, ALL, 0.2).loss.backward()
    assert log_probs.grad is not None
    # d(−A·r)/d log π = −A·r where it is not clipped
    assert log_probs.grad[0].tolist() == pytest.approx([0.0, -1.0, 3.0, 0.0], abs=1e-6)


def test_dual_clip_bounds_what_a_bad_token_costs() -> None:
    log_probs = torch.tensor([[5.0, 2.0, 5.0, 0.5]]).log().requires_grad_()
    advantages = torch.tensor([[-2.0, -2.0, 2.0, -2.0]])
    plain = policy_loss(log_probs, torch.zeros(1, 4), advantages, ALL, 0.2)
    bounded = policy_loss(log_probs, torch.zeros(1, 4), advantages, ALL, 0.2, dual_clip=3.0)
    assert float(plain.loss.detach()) == pytest.approx(10.0 + 4.0 - 2.4 + 1.6, abs=1e-5)
    assert float(bounded.loss.detach()) == pytest.approx(6.0 + 4.0 - 2.4 + 1.6, abs=1e-5)
    assert (int(plain.num_clipped), int(bounded.num_clipped)) == (2, 3)
    bounded.loss.backward()
    assert log_probs.grad is not None
    assert log_probs.grad[0].tolist() == pytest.approx([0.0, 4.0, 0.0, 0.0], abs=1e-5)


def test_dual_clip_bounds_a_weighted_token_by_its_weight() -> None:
    weights = torch.tensor([[0.5, 1.0, 1.0, 1.0]])
    log_probs, advantages = torch.tensor([[5.0, 1.0, 1.0, 1.0]]).log(), torch.tensor([[-2.0, 0.0, 0.0, 0.0]])
    loss = policy_loss(log_probs, torch.zeros(1, 4), advantages, ALL, 0.2, weights, dual_clip=3.0).loss
    assert float(loss) == pytest.approx(3.0, abs=1e-6)


def test_value_loss_by_hand() -> None:
    values, old = torch.tensor([[1.0, 0.1, -1.0, 0.0]]), torch.zeros(1, 4)
    returns = torch.tensor([[2.0, 1.0, 0.0, 3.0]])
    loss = value_loss(values, old, returns, ALL, 0.2)
    # ½·max: (1 − 2)² against (0.2 − 2)²; (0.1 − 1)² both; (−1)² against (−0.2)²; 3² both
    assert float(loss.loss) == pytest.approx(0.5 * (3.24 + 0.81 + 1.0 + 9.0), abs=1e-6)
    assert int(loss.num_clipped) == 1


def test_what_is_masked_does_not_count_whatever_it_holds() -> None:
    mask = torch.tensor([[True, True, False, False]])
    log_probs = torch.tensor([[0.1, -0.2, float("-inf"), 50.0]], requires_grad=True)
    advantages, old = torch.tensor([[1.0, -1.0, 9.0, 9.0]]), torch.zeros(1, 4)
    loss = policy_loss(log_probs, old, advantages, mask, 0.2)
    loss.loss.backward()
    short = policy_loss(log_probs[:, :2].detach(), old[:, :2], advantages[:, :2], mask[:, :2], 0.2)
    assert [float(a.detach()) for a in loss] == pytest.approx([float(b) for b in short])
    assert log_probs.grad is not None
    assert log_probs.grad[0, 2:].tolist() == [0.0, 0.0]


def test_micro_batches_add_up() -> None:
    rows = [torch.randn(6, 5) for _ in range(3)]
    mask = torch.rand(6, 5) < 0.7
    whole = policy_loss(*rows, mask, 0.2).loss + value_loss(*rows, mask, 0.2).loss
    parts = sum(
        policy_loss(*(r[i : i + 2] for r in rows), mask[i : i + 2], 0.2).loss
        + value_loss(*(r[i : i + 2] for r in rows), mask[i : i + 2], 0.2).loss
        for i in (0, 2, 4)
    )
    assert float(parts) == pytest.approx(float(whole), rel=1e-5)


def test_the_same_losses_as_trl_1_12() -> None:
    """Formulas of trl 1.12's ppo_trainer.py, lines for vf_loss and pg_loss, with its masked_mean."""
    generator = torch.Generator().manual_seed(0)
    new, old, advantages, values, old_values, returns = (torch.randn(4, 6, generator=generator) for _ in range(6))
    mask = torch.arange(6) < torch.tensor([6, 3, 5, 1]).unsqueeze(1)

    def masked_mean(x: torch.Tensor) -> torch.Tensor:
        return (x * mask).sum() / mask.sum()

    clipped = torch.clamp(values, old_values - 0.2, old_values + 0.2)
    vf_loss = 0.5 * masked_mean(torch.max((values - returns) ** 2, (clipped - returns) ** 2))
    ratio = torch.exp(new - old)
    pg_loss = masked_mean(torch.max(-advantages * ratio, -advantages * torch.clamp(ratio, 0.8, 1.2)))
    assert torch.allclose(policy_loss(new, old, advantages, mask, 0.2).loss / mask.sum(), pg_loss, atol=1e-6)
    assert torch.allclose(value_loss(values, old_values, returns, mask, 0.2).loss / mask.sum(), vf_loss, atol=1e-6)
