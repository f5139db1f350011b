"""KL estimators against closed form and exact expectation; the controller against hand-computed steps."""

from __future__ import annotations

import math

import pytest
import torch

from ppo_client.ppo.config import KLConfig
from ppo_client.ppo.errors import NonFiniteKL
from ppo_client.ppo.kl import check_finite, coefficient_set, kl_per_token, next_coefficient


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", [math.log(2), -math.log(4)]),
        ("k2", [math.log(2) ** 2 / 2, math.log(4) ** 2 / 2]),
        ("k3", [0.5 - 1 + math.log(2), 4 - 1 - math.log(4)]),
    ],
)
def test_closed_form(estimator: str, expected: list[float]) -> None:
    policy, reference = torch.tensor([0.5, 0.1]).log(), torch.tensor([0.25, 0.4]).log()
    assert kl_per_token(policy, reference, estimator).tolist() == pytest.approx(expected, abs=1e-6)


def test_k1_may_be_negative_and_k3_never_is() -> None:
    generator = torch.Generator().manual_seed(0)
    policy = torch.randn(50, 5, generator=generator).log_softmax(-1)
    reference = torch.randn(50, 5, generator=generator).log_softmax(-1)
    assert float(kl_per_token(policy, reference, "k1").min()) < 0
    assert float(kl_per_token(policy, reference, "k3").min()) >= 0


@pytest.mark.parametrize(("estimator", "is_unbiased"), [("k1", True), ("k2", False), ("k3", True)])
def test_the_mean_over_samples_is_the_exact_kl(estimator: str, is_unbiased: bool) -> None:
    policy = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25], dtype=torch.float64).log()
    reference = torch.tensor([0.3, 0.1, 0.2, 0.2, 0.2], dtype=torch.float64).log()
    exact = float((policy.exp() * (policy - reference)).sum())
    expectation = float((policy.exp() * kl_per_token(policy, reference, estimator)).sum())
    assert (abs(expectation - exact) < 1e-12) == is_unbiased
    tokens = torch.multinomial(policy.exp(), 200_000, replacement=True, generator=torch.Generator().manual_seed(1))
    sampled = float(kl_per_token(policy[tokens], reference[tokens], estimator).mean())
    assert sampled == pytest.approx(expectation, abs=5e-3)


def test_the_same_distribution_costs_nothing() -> None:
    log_probs = torch.randn(4, 7).log_softmax(-1)
    for estimator in ("k1", "k2", "k3"):
        assert torch.equal(kl_per_token(log_probs, log_probs, estimator), torch.zeros(4, 7))


def test_an_estimator_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="k4"):
        kl_per_token(torch.zeros(1), torch.zeros(1), "k4")


@pytest.mark.parametrize("wrong", [torch.finfo(torch.float32).min, -math.inf, math.nan])
def test_a_kl_that_is_not_finite_is_named(wrong: float) -> None:
    log_probs, reference = torch.full((2, 3), -1.5), torch.full((2, 3), -2.0)
    ids = torch.arange(6).view(2, 3)
    check_finite(log_probs, reference, ids)
    reference[1, 2] = wrong
    with pytest.raises(NonFiniteKL, match=r"at 1 tokens: the first, token 5 in place 2 .* log π = -1.5 and log π_ref"):
        check_finite(log_probs, reference, ids)


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (12.0, 1 + 0.2 * 256 / 10_000),  # twice the target, clipped: 1.00512
        (6.6, 1 + 0.1 * 256 / 10_000),
        (6.0, 1.0),
        (0.0, 1 - 0.2 * 256 / 10_000),
        (-3.0, 1 - 0.2 * 256 / 10_000),
    ],
)
def test_adaptive_follows_ziegler(kl: float, factor: float) -> None:
    config = KLConfig(controller="adaptive", target=6.0, horizon=10_000)
    assert next_coefficient(config, 0.1, kl, step=3, num_episodes=256) == pytest.approx(0.1 * factor, rel=1e-12)


def test_fixed_stays() -> None:
    assert next_coefficient(KLConfig(controller="fixed"), 0.1, 1000.0, step=3, num_episodes=256) == 0.1


@pytest.mark.parametrize(("start", "end"), [(0.2, 0.05), (0.0, 0.3)])
def test_scheduled_goes_in_a_straight_line_and_stays_whatever_the_kl(start: float, end: float) -> None:
    config = KLConfig(controller="scheduled", coefficient=start, final_coefficient=end, schedule_steps=4)
    used = [start]
    for step in range(1, 7):
        used.append(next_coefficient(config, used[-1], 1000.0, step=step, num_episodes=256))
    expected = [start + (end - start) * share for share in (0, 0.25, 0.5, 0.75, 1, 1, 1)]
    assert used == pytest.approx(expected, abs=1e-12)
    assert used[4:] == [end] * 3, "exactly"


def test_a_coefficient_that_is_set_is_the_controllers_beginning_or_the_schedules() -> None:
    assert coefficient_set(KLConfig(coefficient=0.3), 7) == 0.3
    assert coefficient_set(KLConfig(coefficient=0.3, controller="adaptive"), 7) == 0.3
    scheduled = KLConfig(coefficient=0.3, controller="scheduled", final_coefficient=0.1, schedule_steps=4)
    assert [coefficient_set(scheduled, step) for step in (0, 2, 9)] == pytest.approx([0.3, 0.2, 0.1])


def test_a_kl_that_is_no_number_does_not_reach_the_coefficient() -> None:
    with pytest.raises(ValueError, match="nan"):
        next_coefficient(KLConfig(controller="adaptive"), 0.1, math.nan, step=1, num_episodes=1)
