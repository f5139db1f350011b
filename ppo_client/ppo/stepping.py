"""A gradient added up over micro-batches, and one step by it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator


class Stepper(Protocol):
    """Processes do the same at the same time; their gradients are averaged."""

    def micro_batch(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Around a forward and a backward pass. Processes need to agree on the gradient after the last alone."""

    def backward(self, loss: Tensor) -> None:
        """Adds to the gradient."""

    def step(self, rate: float) -> tuple[float, ...]:
        """One step at the policy's learning rate `rate`, by the gradient, clipped. Afterwards there is none.

        Returns the norms before clipping of what is clipped by itself: all, or the policy's and a separate critic's.
        Where one is not finite, nothing has changed.
        """

    def discard(self) -> None:
        """Forgets the gradient."""


@dataclass(frozen=True, slots=True)
class PlainStepper:
    """By torch's optimizer, as accelerate wrapped it: in one process, in several, with FSDP."""

    model: Any
    optimizer: Any
    accelerator: Accelerator
    max_grad_norm: float
    parts: Sequence[Sequence[nn.Parameter]]
    """Of the model, each clipped by its own norm"""
    rate_ratios: tuple[float, ...] = (1.0,)
    """Of the parameter groups' learning rates to the policy's"""

    @contextmanager
    def micro_batch(self, *, is_last: bool) -> Iterator[None]:
        if is_last:
            yield
        else:
            with self.accelerator.no_sync(self.model):
                yield

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def step(self, rate: float) -> tuple[float, ...]:
        norms = tuple(float(self.accelerator.clip_grad_norm_(part, self.max_grad_norm)) for part in self.parts)
        if all(map(math.isfinite, norms)):
            for group, ratio in zip(self.optimizer.param_groups, self.rate_ratios, strict=True):
                group["lr"] = rate * ratio
            self.optimizer.step()
        self.discard()
        return norms

    def discard(self) -> None:
        self.optimizer.zero_grad()
