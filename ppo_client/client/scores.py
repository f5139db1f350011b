"""What a scoring call returns: one score per completion, and exactly which version gave it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

Message: TypeAlias = Mapping[str, str]
"""A chat message, ``{"role": ..., "content": ...}``."""

Content: TypeAlias = str | Sequence[Message] | Sequence[int]
"""One prompt or one completion: text, chat messages, or the reward model's own token ids.

Text beside messages is one turn of a chat: the user's as a prompt, the assistant's as a completion."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """An affine map: ``score = gain * raw + bias``. In `Scores` the one that was applied, else the version's own."""

    digest: str
    gain: float
    bias: float


@dataclass(frozen=True, slots=True)
class Component:
    """One part of a composite score: ``weight * value`` was added to the sum."""

    name: str
    value: float
    weight: float
    version: int
    digest: str


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the server spent the call, in seconds; they overlap for calls of several batches."""

    tokenize_s: float = 0.0
    queue_s: float = 0.0
    compute_s: float = 0.0
    total_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one call, in the order of the completions that were sent.

    Every list has one entry per completion. ``values`` are raw scores, or calibrated ones when ``calibration``
    is set. All of them come from the same ``version``, whose content is named by ``digest``.
    """

    values: list[float]
    model: str
    version: int
    digest: str
    truncated: list[bool]
    num_tokens: list[int]
    transform: str = "raw_logit"
    label: str | None = None
    calibration: Calibration | None = None
    components: list[list[Component]] = field(default_factory=list)
    timings: Timings = field(default_factory=Timings)

    def __len__(self) -> int:
        return len(self.values)
