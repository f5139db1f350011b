"""Values are 0 at first, belong to the state before each token, and come from the right trunk."""

from __future__ import annotations

import pytest
import torch
from tiny_models import PAD_ID
from tiny_policies import FAMILIES_OF_POLICIES, make_language_model
from torch import nn

from ppo_client.ppo.config import RolloutConfig
from ppo_client.ppo.models.build import hidden_size, make_policy
from ppo_client.ppo.models.critic import ActorCritic, SeparateCritic, SharedCritic, ValueHead
from ppo_client.ppo.models.sequences import Prompts
from ppo_client.ppo.seeds import Purpose, uniforms

PROMPTS = Prompts.collate([[7, 8], [9, 10, 11, 12, 13], [14]], PAD_ID)
NUMBERS = uniforms(0, Purpose.SAMPLING, 1, range(3), 6)


def make(kind: str, family: str = "llama") -> ActorCritic:
    policy = make_policy(make_language_model(family), RolloutConfig(max_response_tokens=6), None)
    width = hidden_size(policy.model)
    if kind == "shared":
        return ActorCritic(policy, SharedCritic(width)).eval()
    trunk = policy.trunk(make_language_model(family, seed=1))
    return ActorCritic(policy, SeparateCritic(trunk, policy.hidden_states, width)).eval()


def awaken(head: ValueHead) -> None:
    with torch.no_grad():
        nn.init.normal_(head.linear.weight, generator=torch.Generator().manual_seed(0))
        head.linear.bias.fill_(0.5)


@pytest.mark.parametrize("family", ["llama", "t5", "bart"])
@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_values_are_zero_at_first(kind: str, family: str) -> None:
    actor_critic = make(kind, family)
    sequences = actor_critic.policy.sample(PROMPTS, NUMBERS).sequences
    values = actor_critic(sequences).values
    assert torch.equal(values, torch.zeros(3, 6))


@pytest.mark.parametrize("family", FAMILIES_OF_POLICIES)
def test_values_noted_while_sampling_are_the_evaluated_ones(family: str) -> None:
    actor_critic = make("shared", family)
    awaken(actor_critic.critic.head)
    samples = actor_critic.policy.sample(PROMPTS, NUMBERS, actor_critic.critic.head)
    values = actor_critic(samples.sequences).values
    assert samples.values is not None
    mask = samples.sequences.response_mask
    assert float(values[mask].detach().std()) > 0.1
    assert torch.allclose(samples.values[mask], values[mask], atol=1e-4)
    assert torch.equal(samples.values[~mask], torch.zeros(int((~mask).sum())))


@pytest.mark.parametrize("family", ["llama", "t5", "flan_t5", "bart"])
@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_a_value_sees_what_came_before_its_token_and_nothing_after(kind: str, family: str) -> None:
    actor_critic = make(kind, family)
    awaken(actor_critic.critic.head)
    sequences = actor_critic.policy.sample(PROMPTS, NUMBERS).sequences
    with torch.no_grad():
        before = actor_critic(sequences).values
        sequences.response_ids[:, 3] = 20  # in place: the fourth token
        after = actor_critic(sequences).values
    assert torch.allclose(before[:, :4], after[:, :4], atol=1e-5)
    assert float((before[:, 4] - after[:, 4]).abs().min()) > 1e-4, "the next value has seen it"


@pytest.mark.parametrize("family", FAMILIES_OF_POLICIES)
def test_gradients_of_the_value_loss(family: str) -> None:
    for kind, reaches_policy in (("shared", True), ("separate", False)):
        actor_critic = make(kind, family)
        awaken(actor_critic.critic.head)
        sequences = actor_critic.policy.sample(PROMPTS, NUMBERS).sequences
        actor_critic(sequences).values.sum().backward()
        touched = any(p.grad is not None and bool(p.grad.any()) for p in actor_critic.policy.parameters())
        assert touched == reaches_policy
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in actor_critic.critic.parameters())


@pytest.mark.parametrize("family", FAMILIES_OF_POLICIES)
def test_a_separate_trunk_computes_what_the_policys_own_does(family: str) -> None:
    policy = make("shared", family).policy
    sequences = policy.sample(PROMPTS, NUMBERS).sequences
    with torch.no_grad():
        hidden = policy(sequences).hidden
        again = policy.hidden_states(policy.trunk(make_language_model(family).eval()), sequences)
    mask = sequences.response_mask
    assert torch.allclose(again[mask], hidden[mask], atol=1e-5)


@pytest.mark.parametrize("has_bias", [False, True])
def test_a_head_can_start_as_a_score_head(has_bias: bool) -> None:
    score, before = nn.Linear(8, 1, bias=has_bias), nn.Sequential(nn.Linear(8, 8), nn.Tanh()).requires_grad_(False)
    hidden = torch.randn(2, 3, 8)
    for layers in (nn.Sequential(), before):
        head = ValueHead(8)
        head.start_from(score, layers)
        assert torch.equal(head(hidden), score(layers(hidden)).squeeze(-1))
        assert all(parameter.requires_grad for parameter in head.parameters())
