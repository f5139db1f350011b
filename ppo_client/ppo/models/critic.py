"""The value function: a linear head on the policy's hidden states, or on those of a trunk of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ppo_client.ppo.models.sequences import Sequences
from ppo_client.ppo.policy import Policy


class ValueHead(nn.Module):
    """One number per hidden state. Starts at zero, so that at first advantages are rewards-to-go."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.before = nn.Sequential()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def start_from(self, score_head: nn.Linear, before: nn.Sequential) -> None:
        """Starts as a reward model's score head instead, (1, D) with a bias or without, and what lies before it."""
        self.before = copy.deepcopy(before).float().requires_grad_(True)
        with torch.no_grad():
            self.linear.weight.copy_(score_head.weight)
            if score_head.bias is not None:
                self.linear.bias.copy_(score_head.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(…, D) to float32 (…)."""
        with torch.autocast(hidden.device.type, enabled=False):
            values: Tensor = self.linear(self.before(hidden.float())).squeeze(-1)
        return values


class SharedCritic(nn.Module):
    """A head on the policy's own trunk: no second model, and values come for free while sampling."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.head = ValueHead(hidden_size)

    def forward(self, sequences: Sequences, policy_hidden: Tensor) -> Tensor:
        """Values (B, R) of the states before each response token, from the policy's hidden states (B, R, D)."""
        values: Tensor = self.head(policy_hidden)
        return values


class SeparateCritic(nn.Module):
    """A trunk of its own under the head: twice the work, and what the policy learns is the policy's alone.

    Its gradient is clipped by itself (stepping.py), and its learning rate may be another.
    """

    def __init__(self, trunk: Any, hidden_states: Callable[[Any, Sequences], Tensor], hidden_size: int) -> None:
        """`hidden_states` is the policy's method: it knows how a trunk of its architecture is run."""
        super().__init__()
        self.trunk = trunk
        self.head = ValueHead(hidden_size)
        self._hidden_states = hidden_states

    def forward(self, sequences: Sequences, policy_hidden: Tensor | None = None) -> Tensor:
        """Values (B, R) of the states before each response token; the policy's hidden states are not used."""
        values: Tensor = self.head(self._hidden_states(self.trunk, sequences))
        return values


class Evaluation(NamedTuple):
    """All float32 (B, R); anything where the response mask is False."""

    log_probs: Tensor
    """log π of the response's tokens"""
    values: Tensor
    """Of the state before each"""
    entropies: Tensor | None
    """Nats, where they were asked for"""


class ActorCritic(nn.Module):
    """Policy and critic as one module, so that they are wrapped, optimised and saved together."""

    _no_split_modules: list[str] | None = None
    """Names of the layers' classes, where accelerate is to divide it by them"""

    def __init__(self, policy: Policy, critic: SharedCritic | SeparateCritic) -> None:
        super().__init__()
        self.policy = policy
        self.critic = critic

    def parts(self) -> list[list[nn.Parameter]]:
        """What is trained: all of it, or the policy's parameters and those of a separate critic, which share none."""
        modules = (self.policy, self.critic) if isinstance(self.critic, SeparateCritic) else (self,)
        return [[parameter for parameter in module.parameters() if parameter.requires_grad] for module in modules]

    def forward(self, sequences: Sequences, *, with_entropy: bool = False) -> Evaluation:
        """Both by as few forward passes as can be."""
        read = self.policy(sequences, with_entropy=with_entropy)
        return Evaluation(read.log_probs, self.critic(sequences, read.hidden), read.entropies)
