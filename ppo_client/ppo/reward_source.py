"""Asking for scores: the seam to the reward service, what is checked in a reply, and how long to wait for one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from ppo_client.client.scores import Content, Scores
from ppo_client.ppo.errors import InvalidScores, RewardServiceAway

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_LONGEST_SLEEP_S = 0.5


class RewardSource(Protocol):
    """What the trainer needs of a reward service; `ppo_client.RewardClient` is one."""

    def submit(
        self, model: str, *, prompts: Sequence[Content], completions: Sequence[Content], calibrated: bool = False
    ) -> Future[Scores]:
        """Starts scoring and returns at once; the result has one score per completion, in order."""
        ...


@dataclass(slots=True)
class Stop:
    """Whether the run is to end. A plain flag, since a signal handler may wait for no lock."""

    is_wanted: bool = False


@dataclass(frozen=True, slots=True)
class RewardDesk:
    """Sends requests to one source, by the run's rules."""

    source: RewardSource
    model: str
    patience_s: float
    calibrated: bool = False
    """Whether calibrated scores are asked for, and raw ones refused"""
    away_errors: tuple[type[BaseException], ...] = ()
    """Errors of the source that mean "not now": worth asking again"""
    report: Callable[[str], None] = print
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    stop: Stop = field(default_factory=Stop)
    """Once it is wanted, a service that is away is not waited for"""

    def ask(self, prompts: Sequence[Content], completions: Sequence[Content]) -> PendingScores:
        return PendingScores(self, prompts, completions)


class PendingScores:
    """A request under way. `result` may be called once."""

    def __init__(self, desk: RewardDesk, prompts: Sequence[Content], completions: Sequence[Content]) -> None:
        self._desk = desk
        self._prompts, self._completions = prompts, completions
        self._future = self._submit()

    def result(self) -> Scores:
        """Waits for the scores, asking again while the service is away and the run is patient.

        Raises RewardServiceAway, InvalidScores, or what the source raised.
        """
        desk, pause_s = self._desk, _FIRST_PAUSE_S
        give_up_at = desk.clock() + desk.patience_s
        while True:
            try:
                scores = self._future.result()
                return checked(scores, num_expected=len(self._completions), calibrated=desk.calibrated)
            except desk.away_errors as error:
                left_s = give_up_at - desk.clock()
                if left_s <= 0:
                    raise RewardServiceAway(
                        f"no scores from {desk.model!r} for {desk.patience_s:g} s (reward.patience_s): {error}"
                    ) from error
                desk.report(f"the reward service is away ({error}); asking again, for {left_s:.0f} s at most")
                self._pause(min(pause_s, left_s))
                if desk.stop.is_wanted:
                    raise RewardServiceAway(f"stopped while the reward service was away ({error})") from error
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                self._future = self._submit()

    def cancel(self) -> None:
        """The scores are not wanted any more."""
        self._future.cancel()

    def _pause(self, seconds: float) -> None:
        """In short pieces, for a signal does not end a sleep."""
        while seconds > 0 and not self._desk.stop.is_wanted:
            self._desk.sleep(piece := min(seconds, _LONGEST_SLEEP_S))
            seconds -= piece

    def _submit(self) -> Future[Scores]:
        desk = self._desk
        # Sources that know of no calibration are never asked for one.
        options = {"calibrated": True} if desk.calibrated else {}
        return desk.source.submit(desk.model, prompts=self._prompts, completions=self._completions, **options)


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
