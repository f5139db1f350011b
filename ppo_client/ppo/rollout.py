"""Rollouts: the policy writes, the service is asked for scores, and what else is needed is computed meanwhile."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppo_client.ppo.models.critic import ActorCritic, SharedCritic
from ppo_client.ppo.models.generation import Generator, OwnGenerator
from ppo_client.ppo.models.reading import read_in_parts
from ppo_client.ppo.models.sequences import Prompts, Sequences, concatenate
from ppo_client.ppo.policy import Reading, Samples
from ppo_client.ppo.prompts import Prompt
from ppo_client.ppo.scores.asking import Asking
from ppo_client.ppo.scores.reward_source import Given, RewardDesk


@dataclass(frozen=True, slots=True)
class Record:
    """One episode, for people and for the log."""

    prompt: str
    completion: str
    given: Given
    """With a value and no versions: the response is empty, and the settings gave the score"""


@dataclass(frozen=True, slots=True)
class Rollout:
    """The episodes of a step. Tensors of shape (B, R) hold zeros where the response mask is False."""

    sequences: Sequences
    has_eos: Tensor
    """bool (B,)"""
    scores: Tensor
    """float32 (B,), as the service gave them, weighted and summed; the settings' for empty responses; NaN where the
    episode is dropped"""
    log_probs: Tensor
    """float32 (B, R), of the policy as it is before the update"""
    reference_log_probs: Tensor
    """float32 (B, R)"""
    values: Tensor
    """float32 (B, R), of the state before each token"""
    entropies: Tensor
    """float32 (B, R), nats"""
    records: list[Record]
    sampled_log_probs: Tensor | None = None
    """float32 (B, R), of what sampled, where that was an older policy or another engine"""
    is_stale: bool = False
    """An older policy sampled"""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by part, of this process"""

    @property
    def kept(self) -> Tensor:
        """bool (B,): the episodes that count, which are not dropped."""
        return self.sequences.response_mask.any(1)


@dataclass(frozen=True, slots=True)
class Started:
    """Responses that are written and on their way to be scored, by micro-batch."""

    prompts: list[Prompt]
    chunks: list[tuple[Samples, Asking]]
    seconds: dict[str, float]

    def cancel(self) -> None:
        """The scores are not wanted any more."""
        for _, asking in self.chunks:
            asking.cancel()


@dataclass(frozen=True, slots=True)
class RolloutWorker:
    """Makes the episodes of one process."""

    actor_critic: ActorCritic
    reference: Callable[[Sequences], Reading]
    """The reference policy's `forward`"""
    desk: RewardDesk
    tokenizer: Any | None
    micro_batch_size: int
    log_probs_from_sampling: bool
    device: torch.device
    score_chunk_size: int = 8
    generator: Generator = field(default_factory=OwnGenerator)

    def collect(self, prompts: Sequence[Prompt], uniforms: Tensor) -> Rollout:
        """One episode for each prompt; `uniforms` is float64 (B, R)."""
        return self.finish(self.begin(prompts, uniforms))

    @torch.no_grad()
    def begin(self, prompts: Sequence[Prompt], uniforms: Tensor) -> Started:
        """Writes the responses. Scores are asked for as they end, and after each micro-batch."""
        started = Started(list(prompts), [], defaultdict(float))
        try:
            with _timed(started.seconds, "generate_s"):
                self.generator.refresh(self.actor_critic.policy)
            for first in range(0, len(prompts), self.micro_batch_size):
                chunk = prompts[first : first + self.micro_batch_size]
                with _timed(started.seconds, "generate_s"):
                    started.chunks.append(self._write(chunk, uniforms[first : first + len(chunk)]))
        except BaseException:
            started.cancel()
            raise
        return started

    def begin_again(self, prompts: Sequence[Prompt], chunks: Sequence[Samples]) -> Started:
        """With responses that were written before an interruption: their scores are asked for."""
        started, first = Started(list(prompts), [], defaultdict(float)), 0
        for samples in chunks:
            asking = self._asking(prompts[first : first + len(samples.has_eos)])
            started.chunks.append((samples, asking))
            asking.finish(samples)
            first += len(samples.has_eos)
        return started

    @torch.no_grad()
    def finish(self, started: Started, *, is_stale: bool = False) -> Rollout:
        """Computes what else is needed, and waits for scores when there is nothing left to do.

        `is_stale`: the policy has been updated since it wrote.
        """
        seconds = started.seconds
        chunks = [samples for samples, _ in started.chunks]
        try:
            with _timed(seconds, "evaluate_s"):
                evaluated = [self._evaluate(samples, is_stale=is_stale) for samples in chunks]
            with _timed(seconds, "reward_wait_s"):
                given = [one for _, asking in started.chunks for one in asking.result()]
        except BaseException:
            started.cancel()
            raise

        texts = [text for _, asking in started.chunks for text in asking.texts]
        log_probs, reference_log_probs, values, entropies = (torch.cat(parts) for parts in zip(*evaluated, strict=True))
        is_exact = self.generator.is_exact and not is_stale
        return Rollout(
            sequences=concatenate([samples.sequences for samples in chunks], self.actor_critic.policy.pad_id),
            has_eos=torch.cat([samples.has_eos for samples in chunks]),
            scores=torch.tensor(
                [math.nan if one.value is None else one.value for one in given],
                dtype=torch.float32,
                device=self.device,
            ),
            log_probs=log_probs,
            reference_log_probs=reference_log_probs,
            values=values,
            entropies=entropies,
            records=[
                Record(prompt.text, text, one) for prompt, text, one in zip(started.prompts, texts, given, strict=True)
            ],
            sampled_log_probs=None if is_exact else torch.cat([samples.log_probs for samples in chunks]),
            is_stale=is_stale,
            seconds=dict(seconds),
        )

    def _write(self, prompts: Sequence[Prompt], uniforms: Tensor) -> tuple[Samples, Asking]:
        policy, critic = self.actor_critic.policy, self.actor_critic.critic
        collated = Prompts.collate([prompt.token_ids for prompt in prompts], policy.pad_id, self.device)
        asking = self._asking(prompts)
        try:
            head = critic.head if isinstance(critic, SharedCritic) else None
            samples = self.generator.write(policy, collated, uniforms, head, asking.ended)
            asking.finish(samples)
        except BaseException:
            asking.cancel()
            raise
        return samples, asking

    def _asking(self, prompts: Sequence[Prompt]) -> Asking:
        return Asking(
            desk=self.desk,
            prompts=prompts,
            tokenizer=self.tokenizer,
            continues_prompt=self.actor_critic.policy.continues_prompt,
            chunk_size=self.score_chunk_size,
        )

    def _evaluate(self, samples: Samples, *, is_stale: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log-probabilities, the reference's, values, entropies, (B, R) each; no forward pass that can be spared."""
        model, policy, sequences = self.actor_critic, self.actor_critic.policy, samples.sequences
        (reference_log_probs,) = read_in_parts(policy, sequences, lambda part: (self.reference(part).log_probs,))
        if samples.entropies is None:
            log_probs, values, entropies = read_in_parts(
                policy, sequences, lambda part: [found for found in model(part, with_entropy=True) if found is not None]
            )
            return log_probs, reference_log_probs, values, entropies
        if is_stale or not self.log_probs_from_sampling:
            log_probs, values = read_in_parts(policy, sequences, lambda part: model(part)[:2])
            return log_probs, reference_log_probs, values, samples.entropies
        written = samples.values
        if written is None:
            (written,) = read_in_parts(policy, sequences, lambda part: (model.critic(part),))
        return samples.log_probs, reference_log_probs, written, samples.entropies


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] += time.perf_counter() - started
