"""A token's limits: how many calls and items a second, how many calls at once. Pure, the clock is handed in."""

from __future__ import annotations

from dataclasses import dataclass

BURST_S = 1.0
"""A bucket holds what comes in so long: at 100 a second, 100 may come at once after a pause."""

ROUNDING = 1e-6
"""In calls or items: who waited for as long as was said is let in, whatever rounding did to the bucket's level."""

FULL_SLOTS_RETRY_S = 0.1
"""When to come back to a token all of whose concurrent calls are under way: nobody knows when one of them ends."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one token on one server; None: no limit."""

    max_requests_per_s: float | None = None
    max_items_per_s: float | None = None
    max_concurrent_requests: int | None = None

    @property
    def is_none(self) -> bool:
        """Whether nothing is limited."""
        return self == _NO_LIMITS


_NO_LIMITS = Limits()


class Bucket:
    """A token bucket: fills at ``rate_per_s`` up to its burst, ``BURST_S`` of it and at least 1.

    What is larger than the burst may go once the bucket is full, and leaves a debt that the next ones wait for; so
    nothing is refused for ever, and the rate holds in the long run.
    """

    def __init__(self, rate_per_s: float, now: float) -> None:
        self._rate_per_s = rate_per_s
        self._burst = max(1.0, rate_per_s * BURST_S)
        self._level = self._burst
        self._filled_at = now

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until so much may be taken; 0: now. ``now``: on any clock that does not run backwards."""
        self._level = min(self._burst, self._level + self._rate_per_s * (now - self._filled_at))
        self._filled_at = now
        missing = min(amount, self._burst) - self._level
        return missing / self._rate_per_s if missing > ROUNDING else 0.0

    def take(self, amount: float) -> None:
        """Takes it; `wait_s` said that it may be taken."""
        self._level -= amount


class Usage:
    """What a token uses of its limits. The calls under way are counted across a change of the limits."""

    def __init__(self, limits: Limits, now: float) -> None:
        self._num_under_way = 0
        self.limits = limits
        self._fill(now)

    def set_limits(self, limits: Limits, now: float) -> None:
        """New limits begin with full buckets; the same ones go on as they were."""
        if limits != self.limits:
            self.limits = limits
            self._fill(now)

    def begin(self, num_items: int, now: float) -> tuple[str, float] | None:
        """Counts a call that begins, and None; or the limit that is reached, and when to come back in seconds.

        A call that is refused takes from no bucket. One without items waits for none: a debt of items is no reason to
        refuse the renewal of a lease.
        """
        limits = self.limits
        if limits.max_concurrent_requests is not None and self._num_under_way >= limits.max_concurrent_requests:
            return "max_concurrent_requests", FULL_SLOTS_RETRY_S
        if self._requests is not None and (wait_s := self._requests.wait_s(1, now)):
            return "max_requests_per_s", wait_s
        if self._items is not None and num_items and (wait_s := self._items.wait_s(num_items, now)):
            return "max_items_per_s", wait_s
        if self._requests is not None:
            self._requests.take(1)
        if self._items is not None:
            self._items.take(num_items)
        self._num_under_way += 1
        return None

    def end(self) -> None:
        """A call that had begun is over."""
        self._num_under_way -= 1

    def _fill(self, now: float) -> None:
        requests, items = self.limits.max_requests_per_s, self.limits.max_items_per_s
        self._requests = Bucket(requests, now) if requests is not None else None
        self._items = Bucket(items, now) if items is not None else None
