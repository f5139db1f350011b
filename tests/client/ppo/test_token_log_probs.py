"""The same numbers and gradients as log_softmax and autograd give, with less memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ppo_client.ppo.models import token_log_probs as module
from ppo_client.ppo.models.distribution import SamplingRule, entropy
from ppo_client.ppo.models.token_log_probs import token_log_probs

RULES = {
    "plain": SamplingRule(),
    "temperature": SamplingRule(0.7),
    "masked EOS": SamplingRule(1.3, (2, 5), 3),
    "EOS masked everywhere": SamplingRule(0.5, (2, 5), 9),
}
NUM_ROWS, NUM_TOKENS, VOCAB_SIZE = 3, 5, 11


@pytest.fixture(params=[1, 2 * NUM_ROWS * VOCAB_SIZE, 10**9], ids=["columns", "pairs", "whole"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of one column, of two with a rest, and all in one."""
    monkeypatch.setattr(module, "_CHUNK_ON_CPU", request.param)


def random_case() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, ids that are no EOS, and the gradients of log-probabilities and entropies."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(NUM_ROWS, NUM_TOKENS, VOCAB_SIZE, generator=generator) * 4
    ids = torch.randint(6, VOCAB_SIZE, (NUM_ROWS, NUM_TOKENS), generator=generator)
    first, second = torch.rand(2, NUM_ROWS, NUM_TOKENS, generator=generator) - 0.5
    return raw.requires_grad_(), ids, first, second


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("with_entropy", [False, True])
def test_numbers_and_gradients_are_autograd_s(rule: SamplingRule, with_entropy: bool) -> None:
    raw, ids, first, second = random_case()
    distribution = rule.logits(raw).log_softmax(-1)
    log_probs, entropies = distribution.gather(-1, ids.unsqueeze(-1)).squeeze(-1), entropy(distribution)
    loss = (log_probs * first).sum() + with_entropy * (entropies * second).sum()
    (expected,) = torch.autograd.grad(loss, raw)

    found = token_log_probs(raw, ids, rule, with_entropy=with_entropy)
    assert torch.equal(found.log_probs, log_probs)
    loss = (found.log_probs * first).sum()
    if with_entropy:
        assert found.entropies is not None
        assert torch.equal(found.entropies, entropies)
        loss = loss + (found.entropies * second).sum()
    else:
        assert found.entropies is None
    (gradient,) = torch.autograd.grad(loss, raw)
    assert torch.allclose(gradient, expected, atol=2e-6)
    assert float(expected.abs().max()) > 0.1


def test_a_large_gradient_of_the_entropy_is_finite_where_eos_is_masked() -> None:
    raw, ids, _, _ = random_case()
    found = token_log_probs(raw, ids, RULES["masked EOS"], with_entropy=True)
    assert found.entropies is not None
    (1e3 * found.entropies.sum()).backward()
    assert raw.grad is not None
    assert bool(raw.grad.isfinite().all())


def test_logits_of_less_precision_are_read_in_fp32() -> None:
    raw, ids, first, _ = random_case()
    half = raw.detach().bfloat16().requires_grad_()
    log_probs = token_log_probs(half, ids, SamplingRule(0.7)).log_probs
    assert torch.equal(log_probs, token_log_probs(half.float(), ids, SamplingRule(0.7)).log_probs)
    (log_probs * first).sum().backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16


def test_the_logits_stay_as_they_were() -> None:
    raw, ids, first, _ = random_case()
    before = raw.detach().clone()
    (token_log_probs(raw, ids, SamplingRule()).log_probs * first).sum().backward()
    assert torch.equal(raw, before)


def test_nothing_as_large_as_the_logits_is_kept() -> None:
    raw, ids, _, _ = random_case()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        token_log_probs(raw, ids, SamplingRule(0.7), with_entropy=True)
    large = [tensor for tensor in kept if tensor.numel() >= raw.numel()]
    assert [tensor.data_ptr() for tensor in large] == [raw.data_ptr()]
