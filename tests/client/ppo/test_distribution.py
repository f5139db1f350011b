"""One way from logits to probabilities, and tokens drawn from exactly those."""

from __future__ import annotations

import pytest
import torch

from ppo_client.ppo.distribution import SamplingRule, draw, entropy, token_log_probs


def test_temperature_divides_the_logits() -> None:
    raw = torch.tensor([[[1.0, 2.0, 4.0]]])
    assert torch.equal(SamplingRule(temperature=0.5).logits(raw), raw * 2)


def test_eos_is_masked_before_the_minimum_and_not_after() -> None:
    rule = SamplingRule(temperature=2.0, eos_ids=(1, 3), min_tokens=3)
    raw = torch.randn(2, 5, 4)
    probabilities = rule.logits(raw).softmax(-1)
    assert torch.equal(probabilities[:, :3, [1, 3]], torch.zeros(2, 3, 2))
    assert bool((probabilities[:, 3:] > 0).all())
    # One position at a time, as in sampling, it is the same.
    steps = [rule.logits(raw[:, t : t + 1], first_position=t) for t in range(5)]
    assert torch.equal(torch.cat(steps, 1), rule.logits(raw))


def test_logits_are_evaluated_in_fp32_and_left_as_they_were() -> None:
    raw = torch.randn(1, 2, 6).bfloat16()
    before = raw.clone()
    assert SamplingRule(eos_ids=(2,), min_tokens=2).logits(raw).dtype == torch.float32
    assert torch.equal(raw, before)


def test_token_log_probs_and_entropy() -> None:
    log_probs = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]).log().clamp(min=torch.finfo(torch.float32).min)
    assert entropy(log_probs).tolist() == pytest.approx([1.0397208, 0.0])
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    assert token_log_probs(logits, torch.tensor([2])).exp().tolist() == pytest.approx([0.25])


def test_draw_inverts_the_cumulative_distribution() -> None:
    log_probs = torch.tensor([0.2, 0.0, 0.5, 0.3]).log().repeat(7, 1)
    numbers = torch.tensor([0.0, 0.1999, 0.2001, 0.6999, 0.7001, 0.9999, 1 - 2**-53], dtype=torch.float64)
    assert draw(log_probs, numbers).tolist() == [0, 0, 2, 2, 3, 3, 3]


def test_draw_gives_each_token_its_share() -> None:
    probabilities = torch.tensor([0.05, 0.4, 0.25, 0.3])
    numbers = torch.rand(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = draw(probabilities.log().expand(100_000, 4), numbers)
    shares = torch.bincount(drawn, minlength=4) / 100_000
    assert torch.allclose(shares, probabilities, atol=0.006)


def test_a_rare_token_of_a_large_vocabulary_can_be_drawn() -> None:
    logits = torch.zeros(1, 200_000)
    numbers = torch.tensor([123_456.5 / 200_000], dtype=torch.float64)
    assert draw(logits.log_softmax(-1), numbers).tolist() == [123_456]
