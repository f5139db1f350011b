"""Deficit round robin: whose turn it is, when turns are shared by tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

SMALLEST_WEIGHT = 0.01

MAX_REMEMBERED = 1000
"""Of so many who left is it known when; the others come back without credit."""


def _equal(_: object) -> float:
    return 1.0


class Turns(Generic[K]):
    """A ring of those who have work. Each in its turn may use ``quantum_tokens`` times its weight.

    The form with debts: a turn lasts while the balance is positive, so one long item may overdraw it, and the next
    turns pay that back. Over time everyone who always has work gets tokens in proportion to the weights, within one
    quantum and one longest item (Shreedhar and Varghese, "Efficient fair queuing using deficit round robin", 1995).

    Whoever comes back may at once use the share that it would have had of what the others used meanwhile, up to
    ``max_credit_tokens``: so one that asks for less than its share need not take turns with those who ask for more.
    """

    def __init__(
        self, quantum_tokens: int, weight_of: Callable[[K], float] = _equal, max_credit_tokens: float = 0
    ) -> None:
        self._quantum_tokens = quantum_tokens
        self._weight_of = weight_of
        self._max_credit_tokens = max_credit_tokens
        self._ring: deque[K] = deque()
        self._balance: dict[K, float] = {}
        # Added up as they come and go: to go through all at each of thousands who join would hold up the others.
        self._weight_at_joining: dict[K, float] = {}
        self._sum_of_weights = 0.0
        self._used_tokens = 0
        # Of those who left, the last to leave at the end: what all had used until then.
        self._used_at_leaving: dict[K, int] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._balance

    def __iter__(self) -> Iterator[K]:
        """Who has work now, from the one whose turn it is."""
        return iter(tuple(self._ring))

    def join(self, key: K) -> None:
        """``key`` has work from now on; it comes last in the ring. Nothing changes where it is in already."""
        if key not in self._balance:
            self._ring.append(key)
            self._weight_at_joining[key] = self._weight(key)
            self._sum_of_weights += self._weight_at_joining[key]
            self._balance[key] = self._grant(key) + self._credit(key)

    def leave(self, key: K) -> None:
        """``key`` has no more work. What it saved or owes is forgotten."""
        self._ring.remove(key)
        del self._balance[key]
        self._sum_of_weights -= self._weight_at_joining.pop(key)
        if not self._ring:
            self._sum_of_weights = 0.0  # without what rounding left
        if self._max_credit_tokens:
            self._used_at_leaving[key] = self._used_tokens
            if len(self._used_at_leaving) > MAX_REMEMBERED:
                del self._used_at_leaving[next(iter(self._used_at_leaving))]

    def next(self, skip: Collection[K] = ()) -> K | None:
        """Whose turn it is, not counting ``skip``; None when nobody is left."""
        if all(key in skip for key in self._ring):
            return None
        while True:
            key = self._ring[0]
            if key not in skip:
                if self._balance[key] > 0:
                    return key
                self._balance[key] += self._grant(key)
            self._ring.rotate(-1)

    def charge(self, key: K, tokens: int) -> None:
        """``key`` used so many tokens."""
        self._balance[key] -= tokens
        self._used_tokens += tokens

    def _credit(self, key: K) -> float:
        used_tokens = self._used_tokens - self._used_at_leaving.pop(key, self._used_tokens)
        share = self._weight_at_joining[key] / self._sum_of_weights
        return min(self._max_credit_tokens, share * used_tokens)

    def _grant(self, key: K) -> float:
        return self._quantum_tokens * self._weight(key)

    def _weight(self, key: K) -> float:
        return max(SMALLEST_WEIGHT, self._weight_of(key))
