"""Whether a failed call is sent again, and when. Pure: errors, counts and random draws in, pauses out.

Scoring changes nothing on the server, so a call may be repeated; it is, when that can help and the deadline allows:

| failure | repeated |
|---|---|
| Draining, ServerUnreachable | at once on another target, else after a pause |
| QueueFull | after the server's hint, or after a pause on another target |
| RateLimited | after the server's hint: the limit is the token's, so going to another server would get round it |
| Cancelled on the way, CatalogUnavailable, a status that says "not now" | after a pause |
| WorkerFailed, OutOfMemory | after a pause, three attempts in all: the work itself may be what breaks them |
| everything else: wrong requests, unknown names, deadlines, broken versions | never |

A pause is drawn with full jitter, uniform from 0 to min(max_backoff_s, base_backoff_s * 2**(attempt - 1)), so that
callers who failed together do not come back together (Brooker, "Exponential backoff and jitter", AWS 2015).
"""

from __future__ import annotations

from dataclasses import dataclass

from ppo_client.client.errors import (
    Draining,
    InvalidSettings,
    OutOfMemory,
    RateLimited,
    RewardClientError,
    ServerUnreachable,
    Unavailable,
    WorkerFailed,
)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How patient a client is.

    ``base_backoff_s``, ``max_backoff_s``: longest pause after the first attempt, and at all. ``max_work_failures``:
    attempts that may end with WorkerFailed or OutOfMemory. ``burst`` and ``refill_per_s``: size of the retry budget,
    and how fast it fills by itself (see RetryBudget).
    """

    base_backoff_s: float = 0.1
    max_backoff_s: float = 5.0
    max_work_failures: int = 3
    burst: float = 32.0
    refill_per_s: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.base_backoff_s <= self.max_backoff_s:
            raise InvalidSettings(
                f"0 < base_backoff_s <= max_backoff_s is expected, got {self.base_backoff_s} and {self.max_backoff_s}"
            )
        if self.max_work_failures < 1 or self.burst < 1 or self.refill_per_s <= 0:
            raise InvalidSettings(
                "max_work_failures >= 1, burst >= 1 and refill_per_s > 0 are expected, "
                f"got {self.max_work_failures}, {self.burst} and {self.refill_per_s}"
            )

    def backoff_s(self, attempt: int, draw: float) -> float:
        """The pause after the attempt, which counts from 1. ``draw``: uniform in [0, 1)."""
        return draw * min(self.max_backoff_s, self.base_backoff_s * 2.0 ** min(attempt - 1, 60))


def pause_s(
    policy: RetryPolicy,
    error: RewardClientError,
    *,
    attempt: int,
    num_work_failures: int,
    remaining_s: float,
    is_other_target_ready: bool,
    draw: float,
) -> float | None:
    """Seconds until the next attempt; None: give up.

    ``attempt``: how many failed so far, this one included; ``num_work_failures``: of them, those that `is_work_failure`
    names. ``remaining_s``: until the deadline. ``is_other_target_ready``: whether another server is there to be asked.
    """
    if not isinstance(error, Unavailable):
        return None
    if is_work_failure(error) and num_work_failures >= policy.max_work_failures:
        return None
    if is_other_target_ready and isinstance(error, (Draining, ServerUnreachable)):
        pause = 0.0
    else:
        pause = policy.backoff_s(attempt, draw)
        is_hint_for_all = isinstance(error, RateLimited) or not is_other_target_ready
        if error.retry_after_s is not None and is_hint_for_all:
            pause += error.retry_after_s
    return pause if pause < remaining_s else None


def is_work_failure(error: RewardClientError) -> bool:
    """Whether the work itself may be what made it fail."""
    return isinstance(error, (WorkerFailed, OutOfMemory))


class RetryBudget:
    """A token bucket that keeps an outage from becoming a herd.

    Every retry takes a token, every success gives one back, and ``refill_per_s`` come by themselves: a few failures
    among many successes are repeated freely, while in an outage a client sends ``burst`` retries and then
    ``refill_per_s`` a second, whatever the number of its calls.
    """

    def __init__(self, policy: RetryPolicy, now: float) -> None:
        self._policy = policy
        self._tokens = policy.burst
        self._filled_at = now

    def take(self, now: float) -> bool:
        """Takes a token if there is one. ``now``: seconds on any clock that does not run backwards."""
        self._fill(self._policy.refill_per_s * (now - self._filled_at))
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def succeeded(self) -> None:
        """A call succeeded."""
        self._fill(1.0)

    def _fill(self, tokens: float) -> None:
        self._tokens = min(self._policy.burst, self._tokens + tokens)
