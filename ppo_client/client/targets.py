"""Which server is asked next: round robin over those that answer. Pure, but for the state it keeps; clocks come in."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

_FIRST_OUT_S = 0.5
_LONGEST_OUT_S = 30.0
_PROBE_S = 1.0
"""A server that failed is tried by one call in this time, until one succeeds."""


@dataclass(slots=True)
class _Target:
    name: str
    num_failures: int = 0
    """In a row; those of calls that were under way together count once."""
    failed_at: float = float("-inf")
    out_until: float = 0.0


class Targets:
    """The servers of one client, and what is known of them. Not thread-safe: one event loop owns it."""

    def __init__(self, names: Sequence[str], start: int = 0) -> None:
        """``start``: whose turn is first; draw it, so that many clients do not all begin with the same server."""
        self._targets = [_Target(name) for name in names]
        self._next = start % len(names)

    def name(self, index: int) -> str:
        """As it was given."""
        return self._targets[index].name

    def choose(self, now: float, avoid: Collection[int] = ()) -> int:
        """The index of the server to ask now.

        The next in turn that is not out, rather one that is not in ``avoid`` (where this call failed before). When all
        are out, the one that is back first, since no answer is had from asking nobody.
        """
        turns = [(self._next + step) % len(self._targets) for step in range(len(self._targets))]
        ready = [index for index in turns if self._targets[index].out_until <= now]
        fresh = [index for index in ready if index not in avoid]
        if ready:
            index = (fresh or ready)[0]
        else:
            index = min(turns, key=lambda index: (index in avoid, self._targets[index].out_until))
        self._next = (index + 1) % len(self._targets)
        target = self._targets[index]
        if target.num_failures:
            target.out_until = max(target.out_until, now + _PROBE_S)
        return index

    def is_other_ready(self, now: float, than: int) -> bool:
        """Whether another server than ``than`` is there to be asked."""
        return any(target.out_until <= now for index, target in enumerate(self._targets) if index != than)

    def succeeded(self, index: int) -> bool:
        """It answered. Returns whether it had been out before."""
        target = self._targets[index]
        was_out = target.num_failures > 0
        target.num_failures, target.out_until = 0, 0.0
        return was_out

    def failed(self, index: int, now: float, began: float, draw: float) -> bool:
        """It could not be reached or is going down: it is left out for a while, longer each time.

        ``began``: when the failed attempt did. ``draw``: uniform in [0, 1). Returns whether it had been fine before.
        """
        target = self._targets[index]
        if began < target.failed_at:
            return False  # under way when another call failed: the same outage
        target.num_failures += 1
        target.failed_at = now
        longest = min(_LONGEST_OUT_S, _FIRST_OUT_S * 2.0 ** min(target.num_failures - 1, 60))
        target.out_until = now + longest * (0.5 + 0.5 * draw)
        return target.num_failures == 1

    def busy(self, index: int, now: float, retry_after_s: float) -> None:
        """It is full and said when to come back: the others are asked until then."""
        target = self._targets[index]
        target.out_until = max(target.out_until, now + retry_after_s)
