"""Deficit round robin: whose turn it is, when turns are shared by tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

SMALLEST_WEIGHT = 0.01


def _equal(_: object) -> float:
    return 1.0


class Turns(Generic[K]):
    """A ring of those who have work. Each in its turn may use ``quantum_tokens`` times its weight.

    The form with debts: a turn lasts while the balance is positive, so one long item may overdraw it, and the next
    turns pay that back. Over time everyone who always has work gets tokens in proportion to the weights, within one
    quantum and one longest item (Shreedhar and Varghese, "Efficient fair queuing using deficit round robin", 1995).
    """

    def __init__(self, quantum_tokens: int, weight_of: Callable[[K], float] = _equal) -> None:
        self._quantum_tokens = quantum_tokens
        self._weight_of = weight_of
        self._ring: deque[K] = deque()
        self._balance: dict[K, float] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._balance

    def __iter__(self) -> Iterator[K]:
        """Who has work now, from the one whose turn it is."""
        return iter(tuple(self._ring))

    def join(self, key: K) -> None:
        """``key`` has work from now on; it comes last in the ring. Nothing changes where it is in already."""
        if key not in self._balance:
            self._ring.append(key)
            self._balance[key] = self._grant(key)

    def leave(self, key: K) -> None:
        """``key`` has no more work. What it saved or owes is forgotten: an idle time earns nothing."""
        self._ring.remove(key)
        del self._balance[key]

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

    def _grant(self, key: K) -> float:
        return self._quantum_tokens * max(SMALLEST_WEIGHT, self._weight_of(key))
