"""Work that nobody waits for: it gets a turn when nothing else does, and is what goes first under load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic

from rm_server.engine.fair_queue import FairQueue
from rm_server.engine.waiting import W
from rm_server.errors import QueueFull
from rm_server.registry.records import VersionKey

TURN_S = 0.01
"""A background batch should take about so long: whoever comes meanwhile waits for the rest of it."""

SMALLEST_BATCH_TOKENS = 64
"""Not smaller than this, though: each batch has its fixed cost."""


class BackgroundQueue(Generic[W]):
    """What waits in the background, bounded by itself; versions take turns as in the callers' queue.

    ``crowded_share``: where the callers' queue is filled above this share of its bounds, there is no background.
    """

    def __init__(self, *, max_items: int, max_tokens: int, max_batch_tokens: int, crowded_share: float) -> None:
        self._max_batch_tokens = max_batch_tokens
        self._crowded_share = crowded_share
        self._queue: FairQueue[W] = FairQueue(
            max_items=max_items,
            max_tokens=max_tokens,
            max_batch_tokens=max_batch_tokens,
            max_yield_s=0.0,
            run_weights={},
        )

    @property
    def num_items(self) -> int:
        """What waits now."""
        return self._queue.num_items

    def is_crowded(self, filled_share: float) -> bool:
        """Whether there is no background while the callers' queue is filled to this share of its bounds."""
        return filled_share > self._crowded_share

    def offer(self, key: VersionKey, items: Sequence[W], *, filled_share: float, now: float) -> None:
        """Takes all items or none: raises QueueFull, also where callers have too much waiting."""
        if self.is_crowded(filled_share):
            raise QueueFull(
                f"The callers' queue is filled to {filled_share:.0%}; there is no time for background work."
            )
        self._queue.offer(key, "", items, deadline=None, now=now)

    def make_way(self, filled_share: float) -> list[W]:
        """To be told when callers' work came. Takes out and returns what has to go: all, where it is crowded."""
        return self.take_all() if self._queue.num_items and self.is_crowded(filled_share) else []

    def next_batch(
        self, tokens_per_s: Callable[[VersionKey], float], max_items: int, can_take: Callable[[VersionKey], bool]
    ) -> tuple[VersionKey, list[W]] | None:
        """The next batch, a small one. To be asked by a worker that has nothing else to do.

        ``tokens_per_s``: how fast a worker computes a version.
        """
        key = self._queue.next_key(can_take)
        if key is None:
            return None
        budget = background_budget_tokens(tokens_per_s(key), self._max_batch_tokens)
        return self._queue.next_batch(budget, max_items, key.__eq__)

    def drop(self, item: W) -> None:
        """Takes an item out that nobody wants any more; nothing happens when it does not wait."""
        self._queue.drop(item)

    def take_all(self, key: VersionKey | None = None) -> list[W]:
        """Takes out and returns all that waits, for one version or for all (None)."""
        return self._queue.take_all(key)


def background_budget_tokens(tokens_per_s: float, max_batch_tokens: int) -> int:
    """The budget of a background batch on a worker that computes so fast."""
    return min(max_batch_tokens, max(SMALLEST_BATCH_TOKENS, int(tokens_per_s * TURN_S)))
