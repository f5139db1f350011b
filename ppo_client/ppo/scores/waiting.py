"""Waiting for the reward service: again and again while it is away, up to a limit, and not once the run is to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import TypeVar

from ppo_client.ppo.errors import RewardServiceAway, RunStopped

T = TypeVar("T")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
# A signal ends neither a sleep nor the wait for a future: both are done in pieces.
_PIECE_S = 0.1
# A run that is to stop waits so long for scores that may be about to come, and finishes its step with them.
_GRACE_S = 0.5
# After so long without an answer, what has been learnt is brought to safety.
_LONG_WAIT_S = 10.0


@dataclass(slots=True)
class Stop:
    """Whether the run is to end. A plain flag, since a signal handler may wait for no lock."""

    is_wanted: bool = False


@dataclass(frozen=True, slots=True)
class Patience:
    """How a run waits. `result` is the only thing that blocks while the service computes."""

    limit_s: float
    """How long a service that is away is asked again"""
    timeout_s: float = math.inf
    """After so long an unanswered request is given up and counts as one to a service that is away"""
    away_errors: tuple[type[BaseException], ...] = ()
    """Errors that mean "not now": worth asking again"""
    report: Callable[[str], None] = print
    on_trouble: Callable[[], None] = lambda: None
    """Called when a wait gets long, before the first pause"""
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    stop: Stop = field(default_factory=Stop)

    def result(
        self,
        future: Future[T],
        ask_again: Callable[[], Future[T]],
        what: str,
        may_pass: Callable[[Exception], bool] = lambda error: False,
    ) -> T:
        """What `future`, or one that `ask_again` made after it failed, brings.

        `may_pass`: tells of other errors than `away_errors` whether they are worth asking again.
        Raises RewardServiceAway, RunStopped, or what the future raised and is not worth asking again for.
        """
        pause_s, give_up_at = _FIRST_PAUSE_S, self.clock() + self.limit_s
        away: tuple[type[BaseException], ...] = (*self.away_errors, _Unanswered)
        while True:
            try:
                return self._outcome(future)
            except Exception as error:
                if not (isinstance(error, away) or may_pass(error)):
                    raise
                left_s = give_up_at - self.clock()
                self.on_trouble()
                if left_s <= 0:
                    # `ppo-client evaluate`, which asks once, has no such setting.
                    waited = f" for {self.limit_s:g} s (reward.patience_s)" if self.limit_s else ""
                    raise RewardServiceAway(f"no {what}{waited}: {error}") from error
                self.report(f"no {what} so far: {error}; asking again, for {left_s:.0f} s at most")
                # No sooner than a server that refused (it is full, or a token is at its limit) has said.
                hint_s = getattr(error, "retry_after_s", None) or 0.0
                self._pause(min(max(pause_s, hint_s), left_s))
                if self.stop.is_wanted:
                    raise RunStopped(f"stopped while there were no {what}: {error}") from error
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                future = ask_again()

    def _outcome(self, future: Future[T]) -> T:
        began, stopped_at, is_long = self.clock(), math.inf, False
        while not wait((future,), timeout=_PIECE_S).done:
            now = self.clock()
            if self.stop.is_wanted:
                stopped_at = min(stopped_at, now)
                if now - stopped_at >= _GRACE_S:
                    future.cancel()
                    raise RunStopped("stopped while scores were being waited for")
            if now - began >= self.timeout_s:
                future.cancel()
                raise _Unanswered(f"no answer within {self.timeout_s:g} s (reward.timeout_s)")
            if now - began >= _LONG_WAIT_S and not is_long:
                is_long = True
                self.on_trouble()
        return future.result()

    def _pause(self, seconds: float) -> None:
        while seconds > 0 and not self.stop.is_wanted:
            self.sleep(piece := min(seconds, _PIECE_S))
            seconds -= piece


class _Unanswered(Exception):
    """A request that took too long."""
