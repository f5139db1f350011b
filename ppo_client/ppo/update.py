"""The PPO update: epochs of shuffled minibatches over one batch of episodes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from ppo_client.ppo.config import PPOConfig
from ppo_client.ppo.errors import NonFiniteUpdate
from ppo_client.ppo.losses import policy_loss, value_loss
from ppo_client.ppo.models.generation import check_first_update
from ppo_client.ppo.models.sequences import Sequences
from ppo_client.ppo.schedule import learning_rate
from ppo_client.ppo.seeds import minibatch_order
from ppo_client.ppo.sharding import autocast
from ppo_client.ppo.stepping import Stepper

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, slots=True)
class Batch:
    """What the update learns from: the episodes of all processes. Tensors but the first are float32 (B, R)."""

    sequences: Sequences
    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    weights: Tensor | None = None
    """Importance weights, where an older policy or another engine sampled"""

    def select(self, rows: Tensor) -> Batch:
        sequences = self.sequences.select(rows)
        width = sequences.response_ids.shape[1]
        others = (self.log_probs, self.values, self.advantages, self.returns)
        weights = None if self.weights is None else self.weights[rows, :width]
        log_probs, values, advantages, returns = (column[rows, :width] for column in others)
        return Batch(sequences, log_probs, values, advantages, returns, weights)


Number = TypeVar("Number")


class MinibatchStatistics(NamedTuple, Generic[Number]):
    """Means over the tokens of a minibatch, before it was stepped on."""

    policy_loss: Number
    value_loss: Number
    clip_fraction: Number
    value_clip_fraction: Number
    approx_kl: Number
    """Nats per token, of the sampling policy from the present one; estimator k3"""
    ratio: Number
    """π / π_old"""
    max_log_ratio: Number
    """The largest |log π − log π_old|, no mean"""


@dataclass(frozen=True, slots=True)
class UpdateStatistics:
    """What happened in one update."""

    first: MinibatchStatistics[float]
    """Before any step: the ratio is 1 and the log-ratio is rounding, if all is well"""
    mean: MinibatchStatistics[float]
    """Over the minibatches that were stepped on"""
    gradient_norm: float
    """Before clipping, mean over the optimizer steps; of the policy alone where the critic's is clipped by itself"""
    critic_gradient_norm: float | None
    """Likewise, where it is"""
    learning_rate: float
    """Of the last optimizer step"""
    num_optimizer_steps: int
    stopped_early: bool
    """By `ppo.stop_kl`"""


@dataclass(frozen=True, slots=True)
class Updater:
    """Owns the optimizer; `model` is the actor-critic as accelerate wrapped it."""

    model: Any
    optimizer: Any
    stepper: Stepper
    accelerator: Accelerator
    config: PPOConfig

    def update(self, batch: Batch, step: int) -> UpdateStatistics:
        """Changes the parameters by at most epochs × minibatches optimizer steps. `step` counts from 1.

        Raises NonFiniteUpdate before a step with a gradient that is not finite, and GenerationMismatch before the
        run's first step where the policy is not what it was while it sampled.
        """
        ppo, train = self.config.ppo, self.config.train
        done: list[MinibatchStatistics[float]] = []
        norms: list[tuple[float, ...]] = []
        rate, stopped_early, first = 0.0, False, None
        for index, rows in enumerate(self._minibatches(step, len(batch.sequences))):
            if not bool(batch.sequences.response_mask[rows.to(batch.log_probs.device)].any()):
                continue  # all of its episodes are dropped; Adam would move by its momentum
            statistics = self._accumulate_gradients(batch, rows)
            first = first or statistics
            if step == 1 and statistics is first and self.config.is_in_fp32:
                policy = self.accelerator.unwrap_model(self.model).policy
                check_first_update(statistics.approx_kl, type(policy.model).__name__)
            if ppo.stop_kl is not None and statistics.approx_kl > ppo.stop_kl:
                self.stepper.discard()
                stopped_early = True
                break
            rate = learning_rate(ppo, step - 1 + index / self.config.optimizer_steps_per_step, train.num_steps)
            clipped = self.stepper.step(rate)
            if not all(map(math.isfinite, clipped)):
                raise NonFiniteUpdate(
                    f"the gradient's norm is {' and '.join(map(str, clipped))} in optimizer step {index + 1} of "
                    f"{self.config.optimizer_steps_per_step}; the parameters were left as they were",
                    num_optimizer_steps=len(norms),
                )
            norms.append(clipped)
            done.append(statistics)
        assert first is not None
        means = [sum(column) / len(done) for column in zip(*done, strict=True)] if done else first
        norm, *critic_norm = [sum(column) / len(norms) for column in zip(*norms, strict=True)] or [0.0]
        return UpdateStatistics(
            first=first,
            mean=MinibatchStatistics(*means),
            gradient_norm=norm,
            critic_gradient_norm=critic_norm[0] if critic_norm else None,
            learning_rate=rate,
            num_optimizer_steps=len(norms),
            stopped_early=stopped_early,
        )

    def _minibatches(self, step: int, num_rows: int) -> Iterator[Tensor]:
        for epoch in range(self.config.ppo.num_epochs):
            order = torch.tensor(minibatch_order(self.config.train.seed, step, epoch, num_rows))
            yield from order.chunk(self.config.ppo.num_minibatches)

    def _accumulate_gradients(self, batch: Batch, rows: Tensor) -> MinibatchStatistics[float]:
        """Leaves the gradient of the minibatch `rows` in the parameters."""
        mask, world = batch.sequences.response_mask, self.accelerator.num_processes
        num_tokens = mask[rows.to(mask.device)].sum()
        # Each process takes its share of the rows; of similar length together, so that little is padding.
        own = rows[self.accelerator.process_index :: world].to(mask.device)
        own = own[mask[own].sum(1).argsort(stable=True)]
        micro_batches = own.split(self.config.ppo.micro_batch_size or len(own))
        parts = []
        for micro_rows in micro_batches:
            with self.stepper.micro_batch(is_last=micro_rows is micro_batches[-1]):
                loss, columns = self._loss(batch.select(micro_rows))
                # Processes average their gradients; wanted is the sum over all tokens divided by their number.
                self.stepper.backward(loss * world / num_tokens)
            parts.append(columns)
        columns = self.accelerator.gather(torch.stack(parts))
        means = columns[:, :-1].sum(0) / num_tokens
        values: list[float] = [*means.tolist(), columns[:, -1].max().item()]
        return MinibatchStatistics(*values)

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss summed over the tokens, and MinibatchStatistics' fields, summed likewise."""
        ppo, mask = self.config.ppo, batch.sequences.response_mask
        with autocast(self.accelerator, self.config.train.mixed_precision):
            found = self.model(batch.sequences, with_entropy=ppo.entropy_coefficient != 0)
        policy = policy_loss(
            found.log_probs, batch.log_probs, batch.advantages, mask, ppo.clip_range, batch.weights, ppo.dual_clip
        )
        value = value_loss(found.values, batch.values, batch.returns, mask, ppo.value_clip_range)
        loss = policy.loss + ppo.value_coefficient * value.loss
        if found.entropies is not None:
            loss = loss - ppo.entropy_coefficient * (found.entropies * mask).sum()
        columns = MinibatchStatistics[Tensor](
            policy_loss=policy.loss.detach(),
            value_loss=value.loss.detach(),
            clip_fraction=policy.num_clipped,
            value_clip_fraction=value.num_clipped,
            approx_kl=policy.approx_kl,
            ratio=policy.ratio,
            max_log_ratio=policy.max_log_ratio,
        )
        return loss, torch.stack([column.float() for column in columns])
