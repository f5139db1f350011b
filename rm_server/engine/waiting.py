"""What waits of one run for one version: the items of its calls, in the order in which they are served."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, TypeVar

from rm_server.registry.records import VersionKey

LOOK_AHEAD_ITEMS = 16
"""So far behind an item that does not fit into what is left of a batch is one that fits looked for."""


class Waiting:
    """One item in the queue. Those who use the queue derive from it and add what they need to answer.

    ``num_tokens``: what it takes to compute it.
    """

    __slots__ = ("call", "is_waiting", "num_tokens")

    def __init__(self, num_tokens: int) -> None:
        # An item costs something even if it has no tokens (rules over an empty text).
        self.num_tokens = max(1, num_tokens)
        self.is_waiting = False
        self.call: Call[Any] | None = None


W = TypeVar("W", bound=Waiting)


@dataclass(slots=True, eq=False)
class Call(Generic[W]):
    """Items that came together and stay in their order, so that a group's prompt can be shared.

    ``rank``: smaller goes first within the run; it contains the ``priority``. ``number`` counts the calls.
    ``deadline`` on the queue's clock.
    """

    key: VersionKey
    run: str
    rank: float
    number: int
    deadline: float | None
    priority: int = 0
    waiting: deque[W] = field(default_factory=deque)

    def __lt__(self, other: Call[W]) -> bool:
        return (self.rank, self.number) < (other.rank, other.number)


class RunQueue(Generic[W]):
    """The calls of one run for one version, by rank."""

    def __init__(self) -> None:
        self._calls: list[Call[W]] = []
        self.num_items = 0
        self.num_tokens = 0

    def push(self, call: Call[W]) -> None:
        """Takes a call with all its items."""
        heapq.heappush(self._calls, call)
        self.num_items += len(call.waiting)
        self.num_tokens += sum(waiting.num_tokens for waiting in call.waiting)

    def pop(self, max_tokens: int | None) -> tuple[W | None, bool]:
        """The next item of at most ``max_tokens`` (None: of any size), and whether the first in line was passed over.

        No item: none near the front fits. Must not be asked when nothing waits.
        """
        call = self._first_call()
        for index, waiting in enumerate(islice(call.waiting, LOOK_AHEAD_ITEMS)):
            if waiting.is_waiting and (max_tokens is None or waiting.num_tokens <= max_tokens):
                del call.waiting[index]
                self.forget(waiting)
                return waiting, index > 0
        return None, True

    def forget(self, waiting: W) -> None:
        """The item waits no more: it was taken, or dropped; a dropped one is passed by when its place comes."""
        waiting.is_waiting = False
        self.num_items -= 1
        self.num_tokens -= waiting.num_tokens

    def items(self) -> list[W]:
        """All that waits, in no particular order."""
        return [waiting for call in self._calls for waiting in call.waiting if waiting.is_waiting]

    def _first_call(self) -> Call[W]:
        while True:
            call = self._calls[0]
            while call.waiting and not call.waiting[0].is_waiting:
                call.waiting.popleft()
            if call.waiting:
                return call
            heapq.heappop(self._calls)
