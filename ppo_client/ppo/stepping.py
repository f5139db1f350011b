"""A gradient added up over micro-batches, and one step by it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator


class Stepper(Protocol):
    """Processes do the same at the same time; their gradients are averaged."""

    def micro_batch(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Around a forward and a backward pass. Processes need to agree on the gradient after the last alone."""

    def backward(self, loss: Tensor) -> None:
        """Adds to the gradient."""

    def step(self, rate: float) -> float:
        """One step at the learning rate `rate`, by the gradient, clipped. Afterwards there is none.

        Returns the gradient's norm before clipping; where that is not finite, nothing has changed.
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

    @contextmanager
    def micro_batch(self, *, is_last: bool) -> Iterator[None]:
        if is_last:
            yield
        else:
            with self.accelerator.no_sync(self.model):
                yield

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def step(self, rate: float) -> float:
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm))
        if math.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        self.discard()
        return norm

    def discard(self) -> None:
        self.optimizer.zero_grad()
