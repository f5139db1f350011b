"""An item under way: what is computed, and those who wait for its score."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from rm_server.backends.items import EncodedItem
from rm_server.engine.waiting import Waiting
from rm_server.errors import RmError


@dataclass(frozen=True, slots=True)
class ItemScore:
    """A raw, finite score. ``queue_s``: the wait for a turn; ``compute_s``: the forward pass of its batch.

    Both are 0 for a score from the result cache. ``parts``: what it is the weighted sum of, before the weights, where
    the version can tell.
    """

    value: float
    queue_s: float
    compute_s: float
    parts: tuple[float, ...] = ()


class Work(Waiting):
    """One item, computed once for all ``futures``: several where the same item was asked for while it was under way.

    ``arrived`` on `time.perf_counter`: the event loop's clock, which deadlines are on, may move in whole milliseconds.
    ``is_background``: computed when nothing else is to do, if at all.
    """

    __slots__ = ("arrived", "cache_key", "futures", "is_background", "item")

    def __init__(
        self, item: EncodedItem, arrived: float, cache_key: bytes | None, *, is_background: bool = False
    ) -> None:
        super().__init__(item.num_tokens)
        self.item = item
        self.futures: list[asyncio.Future[ItemScore]] = []
        self.arrived = arrived
        self.cache_key = cache_key
        self.is_background = is_background

    @property
    def is_wanted(self) -> bool:
        """Whether anybody still waits."""
        return any(not future.done() for future in self.futures)

    def succeed(self, score: ItemScore) -> None:
        """Answers all who wait."""
        for future in self.futures:
            if not future.done():
                future.set_result(score)

    def cancel(self) -> None:
        """Tells all who wait that it will not be computed."""
        for future in list(self.futures):
            future.cancel()

    def fail(self, error: RmError) -> None:
        """Answers all who wait."""
        for future in self.futures:
            if not future.done():
                future.set_exception(error)


def fail_all(works: Iterable[Work], error: RmError) -> None:
    """Answers all who wait for any of these."""
    for work in works:
        work.fail(error)
