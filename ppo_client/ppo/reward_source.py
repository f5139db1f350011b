"""Asking for scores: the seam to the reward service, one or several models at once, and what is checked in a reply."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ppo_client.client.scores import Content, Scores
from ppo_client.ppo.config import RewardConfig, RewardModelConfig
from ppo_client.ppo.errors import InvalidScores
from ppo_client.ppo.versions import RewardVersion
from ppo_client.ppo.waiting import Patience

if TYPE_CHECKING:
    from ppo_client.client.score_call import TruncationRule


class RewardSource(Protocol):
    """What the trainer needs of a reward service; `ppo_client.RewardClient` is one."""

    def submit(
        self,
        model: str,
        *,
        prompts: Sequence[Content],
        completions: Sequence[Content],
        calibrated: bool = False,
        truncation: TruncationRule | None = None,
    ) -> Future[Scores]:
        """Starts scoring and returns at once; the result has one score per completion, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Given:
    """What one response got: the weighted sum, and each model's own score and version, in the settings' order."""

    value: float
    parts: tuple[float, ...]
    versions: tuple[RewardVersion, ...]


def parts_of(reward: RewardConfig) -> tuple[RewardModelConfig, ...]:
    """The models that the settings name, each with its weight."""
    parts = reward.models or (RewardModelConfig(reward.model, 1.0, reward.calibrated),)
    if reward.on_version_change != "recalibrate":
        return parts
    return tuple(RewardModelConfig(part.model, part.weight, calibrated=True) for part in parts)


@dataclass(frozen=True, slots=True)
class RewardDesk:
    """Sends requests to one source, by the run's rules."""

    source: RewardSource
    parts: tuple[RewardModelConfig, ...]
    patience: Patience
    truncation: TruncationRule | None = None
    """Of what is too long for a model; None: the version's own rule"""

    def ask(self, prompts: Sequence[Content], completions: Sequence[Content]) -> PendingScores:
        """Asks all models at the same time."""
        return PendingScores([_Request(self, part, prompts, completions) for part in self.parts])


class PendingScores:
    """Requests under way, one for each model. `result` may be called once."""

    def __init__(self, requests: list[_Request]) -> None:
        self._requests = requests

    def result(self) -> list[Given]:
        """One for each completion. Waits, asking again while the service is away and the run is patient.

        Raises RewardServiceAway, RunStopped, InvalidScores, or what the source raised.
        """
        try:
            answers = [request.result() for request in self._requests]
        except BaseException:
            self.cancel()
            raise
        versions = tuple(RewardVersion.of(scores) for scores in answers)
        weights = [request.part.weight for request in self._requests]
        return [
            Given(sum(weight * value for weight, value in zip(weights, values, strict=True)), values, versions)
            for values in zip(*(scores.values for scores in answers), strict=True)
        ]

    def cancel(self) -> None:
        """The scores are not wanted any more."""
        for request in self._requests:
            request.cancel()


class _Request:
    """A request to one model."""

    def __init__(
        self, desk: RewardDesk, part: RewardModelConfig, prompts: Sequence[Content], completions: Sequence[Content]
    ) -> None:
        self.part = part
        self._desk = desk
        self._prompts, self._completions = prompts, completions
        self._future = self._submit()

    def result(self) -> Scores:
        scores = self._desk.patience.result(self._future, self._submit, f"scores from {self.part.model!r}")
        return checked(scores, num_expected=len(self._completions), calibrated=self.part.calibrated)

    def cancel(self) -> None:
        self._future.cancel()

    def _submit(self) -> Future[Scores]:
        # Sources that know of no calibration or truncation are never asked for it.
        options: dict[str, Any] = {"calibrated": True} if self.part.calibrated else {}
        if self._desk.truncation is not None:
            options["truncation"] = self._desk.truncation
        return self._desk.source.submit(
            self.part.model, prompts=self._prompts, completions=self._completions, **options
        )


def checked(scores: Scores, *, num_expected: int, calibrated: bool = False) -> Scores:
    """The same scores, if there is one finite number for each completion, on the scale that was asked for."""
    named = f"{scores.model}@{scores.version}"
    if calibrated != (scores.calibration is not None):
        raise InvalidScores(
            f"{named} answered {'raw' if calibrated else 'calibrated'} scores, and reward.calibrated is {calibrated}"
        )
    if len(scores.values) != num_expected:
        raise InvalidScores(f"{named} answered {len(scores.values)} scores for {num_expected} completions")
    for row, value in enumerate(scores.values):
        # A bool is an int, a string would only fail much later, and None is the classic stand-in for "no score".
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise InvalidScores(
                f"{named} answered {value!r} for completion {row} of {num_expected}; a finite number is expected. "
                "Nothing was learnt from this batch"
            )
    return scores
