"""One way from logits to probabilities, and tokens drawn from exactly those."""

from __future__ import annotations

import pytest
import torch

from ppo_client.ppo.models.distribution import SamplingRule, draw, entropy


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


def test_entropy() -> None:
    log_probs = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]).log().clamp(min=torch.finfo(torch.float32).min)
    assert entropy(log_probs).tolist() == pytest.approx([1.0397208, 0.0])


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


def test_what_is_impossible_is_never_drawn() -> None:
    log_probs = torch.tensor([[0.0, 0.5, 0.5, 0.0]]).log()
    numbers = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw(log_probs.expand(3, 4), numbers).tolist() == [1, 2, 2]


def test_rare_tokens_of_a_large_vocabulary_are_drawn() -> None:
    """In fp32 the sum stays at 1 after the first token, and the thousand others would never occur."""
    logits = torch.full((1, 1001), -20.0)
    logits[0, 0] = 0.0
    log_probs = logits.log_softmax(-1)
    rest = 1 - float(log_probs[0, 0].double().exp())
    shares = torch.linspace(0.99, 0.01, 200, dtype=torch.float64)
    drawn = draw(log_probs.expand(200, 1001), 1 - rest * shares).tolist()
    assert drawn == sorted(drawn)
    assert len(set(drawn)) > 150
