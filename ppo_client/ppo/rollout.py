"""Rollouts: the policy writes, the service is asked for scores, and what else is needed is computed meanwhile."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppo_client.client.scores import Content
from ppo_client.ppo.completions import completion_contents, is_empty, response_ids, response_texts
from ppo_client.ppo.critic import ActorCritic, SharedCritic
from ppo_client.ppo.distribution import token_log_probs
from ppo_client.ppo.errors import EmptyResponse
from ppo_client.ppo.policy import Samples
from ppo_client.ppo.prompts import Prompt
from ppo_client.ppo.reward_source import PendingScores, RewardDesk
from ppo_client.ppo.sequences import Prompts, Sequences, concatenate, pad_columns
from ppo_client.ppo.versions import RewardVersion


@dataclass(frozen=True, slots=True)
class Record:
    """One episode, for people and for the log."""

    prompt: str
    completion: str
    score: float
    version: RewardVersion | None
    """None: the response is empty, and the settings gave the score"""


@dataclass(frozen=True, slots=True)
class Rollout:
    """The episodes of a step. Tensors of shape (B, R) hold zeros where the response mask is False."""

    sequences: Sequences
    has_eos: Tensor
    """bool (B,)"""
    scores: Tensor
    """float32 (B,), as the service gave them; the settings' for empty responses"""
    log_probs: Tensor
    """float32 (B, R), of the policy that sampled"""
    reference_log_probs: Tensor
    """float32 (B, R)"""
    values: Tensor
    """float32 (B, R), of the state before each token"""
    entropies: Tensor
    """float32 (B, R), nats"""
    records: list[Record]
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by part, of this process"""


@dataclass(frozen=True, slots=True)
class RolloutWorker:
    """Makes the episodes of one process."""

    actor_critic: ActorCritic
    reference: Callable[[Sequences], tuple[Tensor, Tensor]]
    """The reference policy's `forward`: logits (B, R, V) first"""
    desk: RewardDesk
    tokenizer: Any | None
    micro_batch_size: int
    log_probs_from_sampling: bool
    device: torch.device
    empty_score: float | None = None
    """Of responses without text, which are not sent"""

    @torch.no_grad()
    def collect(self, prompts: Sequence[Prompt], uniforms: Tensor) -> Rollout:
        """One episode for each prompt; `uniforms` is float64 (B, R).

        Scores of a micro-batch are asked for as soon as it is sampled, and awaited when there is nothing left to do.
        """
        seconds: dict[str, float] = defaultdict(float)
        size = self.micro_batch_size
        under_way: list[tuple[Samples, list[str], _Request]] = []
        try:
            for first in range(0, len(prompts), size):
                chunk = prompts[first : first + size]
                with _timed(seconds, "generate_s"):
                    samples = self._sample(chunk, uniforms[first : first + size])
                texts = response_texts(
                    samples, self.tokenizer, continues_prompt=self.actor_critic.policy.continues_prompt
                )
                contents = completion_contents(chunk, response_ids(samples), texts)
                under_way.append((samples, texts, self._ask(chunk, contents)))
            with _timed(seconds, "evaluate_s"):
                evaluated = [self._evaluate(samples) for samples, _, _ in under_way]
            with _timed(seconds, "reward_wait_s"):
                answers = [request.result() for _, _, request in under_way]
        except BaseException:
            for _, _, request in under_way:
                request.cancel()
            raise

        texts = [text for _, chunk_texts, _ in under_way for text in chunk_texts]
        given = [pair for pairs in answers for pair in pairs]
        log_probs, reference_log_probs, values = (torch.cat(parts) for parts in zip(*evaluated, strict=True))
        return Rollout(
            sequences=concatenate([samples.sequences for samples, _, _ in under_way], self.actor_critic.policy.pad_id),
            has_eos=torch.cat([samples.has_eos for samples, _, _ in under_way]),
            scores=torch.tensor([value for value, _ in given], dtype=torch.float32, device=self.device),
            log_probs=log_probs,
            reference_log_probs=reference_log_probs,
            values=values,
            entropies=torch.cat([samples.entropies for samples, _, _ in under_way]),
            records=[
                Record(prompt.text, text, value, version)
                for prompt, text, (value, version) in zip(prompts, texts, given, strict=True)
            ],
            seconds=dict(seconds),
        )

    def _sample(self, prompts: Sequence[Prompt], uniforms: Tensor) -> Samples:
        policy, critic = self.actor_critic.policy, self.actor_critic.critic
        collated = Prompts.collate([prompt.token_ids for prompt in prompts], policy.pad_id, self.device)
        return policy.sample(collated, uniforms, critic.head if isinstance(critic, SharedCritic) else None)

    def _ask(self, prompts: Sequence[Prompt], completions: Sequence[Content]) -> _Request:
        """Raises EmptyResponse where the settings do not say what an empty response is worth."""
        empty = [is_empty(completion) for completion in completions]
        if any(empty) and self.empty_score is None:
            raise EmptyResponse(
                f"a response to {prompts[empty.index(True)].text!r:.80} has no text (EOS first, or special tokens "
                "alone), so there is nothing to score: set reward.empty_score to what such a response is worth (on "
                "resume, too); with rollout.min_response_tokens of 1 or more EOS cannot come first"
            )
        asked = [
            pair for pair, nothing in zip(zip(prompts, completions, strict=True), empty, strict=True) if not nothing
        ]
        pending = self.desk.ask([prompt.content for prompt, _ in asked], [text for _, text in asked]) if asked else None
        return _Request(pending, [self.empty_score if nothing else None for nothing in empty])

    def _evaluate(self, samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities, the reference's, and values, all (B, R); no forward pass that can be spared."""
        sequences = samples.sequences.trimmed()

        def evaluated(logits: Tensor) -> Tensor:
            return self._widened(token_log_probs(logits, sequences.response_ids), samples)

        reference_log_probs = evaluated(self.reference(sequences)[0])
        if not self.log_probs_from_sampling:
            logits, values = self.actor_critic(sequences)
            return evaluated(logits), reference_log_probs, self._widened(values, samples)
        values = samples.values
        if values is None:
            values = self._widened(self.actor_critic.critic(sequences), samples)
        return samples.log_probs, reference_log_probs, values

    @staticmethod
    def _widened(values: Tensor, samples: Samples) -> Tensor:
        mask = samples.sequences.response_mask
        return torch.where(mask, pad_columns(values, mask.shape[1]), 0.0)


@dataclass(frozen=True, slots=True)
class _Request:
    """What was asked for a micro-batch, and the scores that are known without asking."""

    pending: PendingScores | None
    """None: every response is empty"""
    known: list[float | None]
    """One per response; None: asked for"""

    def result(self) -> list[tuple[float, RewardVersion | None]]:
        """Score and version of each response."""
        scores = self.pending.result() if self.pending else None
        version = RewardVersion.of(scores) if scores else None
        answers = iter(scores.values if scores else ())
        return [(next(answers), version) if value is None else (value, None) for value in self.known]

    def cancel(self) -> None:
        if self.pending is not None:
            self.pending.cancel()


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] += time.perf_counter() - started
