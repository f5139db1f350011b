"""Asking for scores: the seam to the reward service, one or several models at once, and what is checked in a reply."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ppo_client.client.errors import ItemsFailed, UnsupportedContent
from ppo_client.client.scores import Content, Scores
from ppo_client.ppo.config import RewardConfig, RewardModelConfig
from ppo_client.ppo.errors import FailedItems, InvalidScores
from ppo_client.ppo.scores.versions import RewardVersion
from ppo_client.ppo.scores.waiting import Patience

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

    value: float | None
    """None: an item of it failed, and its episode is dropped; then there are no parts and versions"""
    parts: tuple[float, ...]
    versions: tuple[RewardVersion, ...]
    error: str = ""
    """By which an item failed"""


@dataclass(frozen=True, slots=True)
class _Answer:
    """One model's, by completion."""

    values: Sequence[float | None]
    version: RewardVersion
    errors: Mapping[int, str]
    """Of the completions without a value"""


def parts_of(reward: RewardConfig) -> tuple[RewardModelConfig, ...]:
    """The models that the settings name, each with its weight."""
    parts = reward.models or (RewardModelConfig(reward.model, 1.0, reward.calibrated),)
    if reward.on_version_change != "recalibrate":
        return parts
    return tuple(RewardModelConfig(part.model, part.weight, calibrated=True) for part in parts)


@dataclass(frozen=True, slots=True)
class Advice:
    """What can be done about a response without a score, by the names that it has where the desk is."""

    failed: str = (
        "What is too long can be cut (reward.truncation), and a run can go on without such episodes "
        '(reward.on_failed_item = "drop"); both may be set on resume'
    )
    unreadable: str = (
        "Begin a run with prompts of another kind (text, chat messages, token ids) in data.prompts, or with a model in "
        "reward.model that reads these"
    )
    """Where no response has a score, for its content is of a kind that the model does not read"""
    empty: str = (
        "set reward.empty_score to what such a response is worth (on resume, too); with rollout.min_response_tokens of "
        "1 or more EOS cannot come first"
    )


@dataclass(frozen=True, slots=True)
class RewardDesk:
    """Sends requests to one source, by the run's rules."""

    source: RewardSource
    parts: tuple[RewardModelConfig, ...]
    patience: Patience
    truncation: TruncationRule | None = None
    """Of what is too long for a model; None: the version's own rule"""
    drops_failed_items: bool = False
    empty_score: float | None = None
    """Of responses without text, which are not sent (`asking.ask`)"""
    advice: Advice = Advice()

    def ask(self, prompts: Sequence[Content], completions: Sequence[Content]) -> PendingScores:
        """Asks all models at the same time."""
        return PendingScores([_Request(self, part, prompts, completions) for part in self.parts])


class PendingScores:
    """Requests under way, one for each model. `result` may be called once."""

    def __init__(self, requests: list[_Request]) -> None:
        self._requests = requests

    def result(self) -> list[Given]:
        """One for each completion. Waits, asking again while the service is away and the run is patient.

        Raises RewardServiceAway, RunStopped, InvalidScores, FailedItems, or what the source raised.
        """
        try:
            answers = [request.result() for request in self._requests]
        except BaseException:
            self.cancel()
            raise
        versions = tuple(answer.version for answer in answers)
        weights = [request.part.weight for request in self._requests]
        found = []
        for row, values in enumerate(zip(*(answer.values for answer in answers), strict=True)):
            parts = tuple(value for value in values if value is not None)
            if len(parts) == len(values):
                value = sum(weight * part for weight, part in zip(weights, parts, strict=True))
                found.append(Given(value, parts, versions))
            else:
                error = next(answer.errors[row] for answer in answers if row in answer.errors)
                found.append(Given(None, (), (), error))
        return found

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

    def result(self) -> _Answer:
        try:
            what = f"scores from {self.part.model!r}"
            scores = self._desk.patience.result(self._future, self._submit, what, self._may_pass)
        except ItemsFailed as failed:
            if not self._desk.drops_failed_items:
                raise FailedItems(f"{failed} {self._advice(failed)}") from failed
            calibration = failed.calibration.digest if failed.calibration else None
            return _Answer(
                values=[failed.scores.get(row) for row in range(len(self._completions))],
                version=RewardVersion(failed.model, failed.version, failed.digest, calibration),
                errors={row: f"{type(error).__name__}: {error}" for row, error in failed.errors.items()},
            )
        checked(scores, num_expected=len(self._completions), calibrated=self.part.calibrated)
        return _Answer(scores.values, RewardVersion.of(scores), {})

    def cancel(self) -> None:
        self._future.cancel()

    def _advice(self, failed: ItemsFailed) -> str:
        are_unreadable = all(isinstance(error, UnsupportedContent) for error in failed.errors.values())
        return self._desk.advice.unreadable if are_unreadable and not failed.scores else self._desk.advice.failed

    def _may_pass(self, error: Exception) -> bool:
        """Dropped are those only that never get a score; beside one of them others may get theirs later."""
        return self._desk.drops_failed_items and isinstance(error, ItemsFailed) and bool(error.passing)

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
