"""What writes the responses of a rollout: our own sampling, or an engine that is faster and not quite the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

from torch import Tensor

from ppo_client.ppo.config import PPOConfig
from ppo_client.ppo.errors import ConfigError, GenerationMismatch
from ppo_client.ppo.policy import Policy, Samples
from ppo_client.ppo.sequences import Prompts


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
    from ppo_client.ppo.vllm_engine import VLLMGenerator

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
