"""What writes the responses of a rollout: our own sampling, or an engine that is faster and not quite the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Protocol

from torch import Tensor

from ppo_client.ppo.config import PPOConfig
from ppo_client.ppo.errors import ConfigError, GenerationMismatch
from ppo_client.ppo.models.sequences import Prompts
from ppo_client.ppo.policy import Policy, Samples

# Nats, root mean square. Rounding makes 1e-6 a token in fp32,
# and up to 3e-4 here, as k3 takes the difference of near numbers.
_MAX_FIRST_GAP = 1e-2


class Generator(Protocol):
    """Writes responses by the policy as it is."""

    @property
    def is_exact(self) -> bool:
        """Whether the log-probabilities are the policy's own; else they are computed anew, and tokens weighted."""

    def refresh(self, policy: Policy) -> None:
        """To be called before a rollout: the policy may have learnt since."""

    def write(
        self,
        policy: Policy,
        prompts: Prompts,
        uniforms: Tensor,
        value_head: Callable[[Tensor], Tensor] | None,
        on_end: Callable[[Samples, list[int]], None],
    ) -> Samples:
        """As `Policy.sample`. Values and entropies may be None."""


class OwnGenerator:
    """`Policy.sample`."""

    is_exact: ClassVar[bool] = True

    def refresh(self, policy: Policy) -> None:
        """The policy itself writes, so there is nothing to do."""

    def write(
        self,
        policy: Policy,
        prompts: Prompts,
        uniforms: Tensor,
        value_head: Callable[[Tensor], Tensor] | None,
        on_end: Callable[[Samples, list[int]], None],
    ) -> Samples:
        return policy.sample(prompts, uniforms, value_head, on_end)


def make_generator(config: PPOConfig, policy: Policy, max_prompt_tokens: int, num_processes: int) -> Generator:
    """The one that `rollout.generator` names. Raises ConfigError where it cannot be had."""
    if config.rollout.generator == "own":
        return OwnGenerator()
    if not policy.continues_prompt:
        raise ConfigError(
            'rollout.generator = "vllm" is for decoder-only policies, and this one is an encoder-decoder: set "own"'
        )
    from ppo_client.ppo.models.vllm_engine import VLLMGenerator

    return VLLMGenerator(config, max_prompt_tokens, num_processes)


def log_prob_gap(log_probs: Tensor, sampled_log_probs: Tensor, response_mask: Tensor, limit: float) -> float:
    """Mean |log π − log π_sampled| over tokens, in nats; both float32 (B, R).

    Raises GenerationMismatch where it is above `limit`, or no number: then the engine has another model, or other
    weights, and no importance weight makes up for that.
    """
    gap = float((log_probs - sampled_log_probs)[response_mask].abs().mean())
    if not gap <= limit:
        raise GenerationMismatch(
            f"what wrote the responses and the policy differ by {gap:.4g} nats per token in the log-probabilities of "
            f"the same tokens; rollout.vllm_max_gap allows {limit:g}. Its weights were not those of the policy, or it "
            'computes something else: set rollout.generator = "own"'
        )
    return gap


def check_first_update(approx_kl: float, kind: str) -> None:
    """Raises GenerationMismatch where a model of the class `kind` does not learn from what it has sampled.

    `approx_kl`: as MinibatchStatistics has it, before any step, in fp32. It is δ²/2, for small differences δ between
    the log-probabilities of a token while it was sampled and in the update's forward pass.
    """
    gap = math.sqrt(2 * max(approx_kl, 0.0))
    if gap > _MAX_FIRST_GAP:
        raise GenerationMismatch(
            f"the policy is a {kind}, whose log-probabilities of the same tokens differ by {gap:.2g} nats (root mean "
            "square) between sampling and the update, where only rounding should (1e-6). It computes something else "
            "with a cache, or in training mode (experts that are drawn at random, say), so PPO's ratio would be wrong. "
            "Nothing was learnt; take a model of another architecture"
        )
