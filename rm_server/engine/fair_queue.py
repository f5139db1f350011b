"""The queue in front of the workers: bounded, fair between versions and runs, without clock or thread."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Generic

from rm_server.engine.batcher import VersionQueue
from rm_server.engine.turns import Turns
from rm_server.engine.waiting import Call, W
from rm_server.errors import QueueFull
from rm_server.registry.records import VersionKey, version_name

PRIORITY_STEP_S = 30.0
"""One step of priority is worth so much waiting time: priority 1 goes before what came up to 30 s earlier with 0."""

SHORTEST_RETRY_S = 0.1
LONGEST_RETRY_S = 60.0


class FairQueue(Generic[W]):
    """Items wait by version, then by run, then by call. Times are seconds on the caller's clock, handed in.

    Versions take turns by tokens, a batch a turn; so do the runs within a batch, by their weights. Within a run a
    call is ranked by when it would be done if it were alone: its arrival plus the time it takes to compute, at most
    ``max_yield_s``; each step of priority makes it ``PRIORITY_STEP_S`` older. So small calls pass large ones, and no
    call ever yields to one of the same priority that came more than ``max_yield_s`` later: nothing waits for ever.
    """

    def __init__(
        self,
        *,
        max_items: int,
        max_tokens: int,
        max_batch_tokens: int,
        max_yield_s: float,
        run_weights: Mapping[str, float],
        tokens_per_s: float = 10_000.0,
    ) -> None:
        self._max_items = max_items
        self._max_tokens = max_tokens
        self._max_batch_tokens = max_batch_tokens
        self._max_yield_s = max_yield_s
        self._run_weights = run_weights
        self._versions: dict[VersionKey, VersionQueue[W]] = {}
        self._turns: Turns[VersionKey] = Turns(max_batch_tokens)
        self._deadlines: list[tuple[float, int, Call[W]]] = []
        self._num_calls = 0
        self.num_items = 0
        self.num_tokens = 0
        self.tokens_per_s = tokens_per_s
        """How fast this queue is worked off, as measured by whoever does it."""

    def offer(
        self, key: VersionKey, run: str, items: Sequence[W], *, priority: int = 0, deadline: float | None, now: float
    ) -> None:
        """Takes all items of a call, or none: raises QueueFull with a hint when to come back.

        While the queue is full, a run that has less waiting than its share is let in nevertheless, up to twice the
        bounds, so that no run can shut the others out. A call that is larger than the bounds themselves is let in
        when nothing waits.
        """
        num_tokens = sum(item.num_tokens for item in items)
        self.check_room(key, run, len(items), num_tokens)
        self._num_calls += 1
        call = Call[W](
            key=key,
            run=run,
            rank=now + min(num_tokens / self.tokens_per_s, self._max_yield_s) - priority * PRIORITY_STEP_S,
            number=self._num_calls,
            deadline=deadline,
            priority=priority,
        )
        for item in items:
            item.call = call
            item.is_waiting = True
            call.waiting.append(item)
        if not items:
            return
        if (version := self._versions.get(key)) is None:
            version = self._versions[key] = VersionQueue(self._weight_of, self._max_batch_tokens)
            self._turns.join(key)
        version.push(call)
        self.num_items += len(items)
        self.num_tokens += num_tokens
        if deadline is not None:
            heapq.heappush(self._deadlines, (deadline, call.number, call))
            self._forget_finished_calls()

    def drop(self, item: W) -> None:
        """Takes an item out that nobody wants any more; nothing happens when it does not wait."""
        if item.is_waiting:
            assert item.call is not None
            key = item.call.key
            self._versions[key].drop(item)
            self._left(key, [item])

    def expire(self, now: float) -> list[W]:
        """Takes out and returns the items whose deadline has passed."""
        expired: list[W] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            call = heapq.heappop(self._deadlines)[2]
            expired += (item for item in call.waiting if item.is_waiting)
        for item in expired:
            self.drop(item)
        return expired

    def next_key(self, can_take: Callable[[VersionKey], bool]) -> VersionKey | None:
        """The version whose turn it is among those that ``can_take`` allows; None: nothing waits for them."""
        return self._turns.next(skip=[key for key in self._versions if not can_take(key)])

    def next_batch(
        self, max_tokens: int, max_items: int, can_take: Callable[[VersionKey], bool]
    ) -> tuple[VersionKey, list[W]] | None:
        """Takes the next batch, of the version whose turn it is among those that ``can_take`` allows."""
        key = self.next_key(can_take)
        if key is None:
            return None
        batch = self._versions[key].next_batch(max_tokens, max_items)
        self._charge(key, batch)
        return key, batch

    def take_along(self, keys: Collection[VersionKey], max_tokens: int, max_items: int) -> list[W]:
        """Takes what another version's batch has room for, from these versions, the next in turn first.

        They pay for it with their turns to come. A version's items lie side by side.
        """
        taken: list[W] = []
        for key in self._turns:
            if key in keys:
                batch = self._versions[key].next_batch(max_tokens, max_items - len(taken), fits_only=True)
                max_tokens -= sum(item.num_tokens for item in batch)
                taken += batch
                self._charge(key, batch)
        return taken

    def has_full_batch(self, max_tokens: int, max_items: int) -> bool:
        """Whether some version has enough waiting to fill a batch."""
        return any(
            version.num_tokens >= max_tokens or version.num_items >= max_items for version in self._versions.values()
        )

    @property
    def filled_share(self) -> float:
        """What waits as a share of the bounds, of items or of tokens, whichever is more."""
        return max(self.num_items / self._max_items, self.num_tokens / self._max_tokens)

    def take_all(self, key: VersionKey | None = None) -> list[W]:
        """Takes out and returns all that waits, for one version or for all (None)."""
        taken = [
            item
            for version_key, version in self._versions.items()
            if key is None or version_key == key
            for run in version.runs.values()
            for item in run.items()
        ]
        for item in taken:
            self.drop(item)
        return taken

    def retry_after_s(self, num_tokens: int) -> float:
        """When half of what waits, with ``num_tokens`` more, will have been worked off at the measured rate."""
        seconds = (self.num_tokens + num_tokens) / 2 / self.tokens_per_s
        return min(LONGEST_RETRY_S, max(SHORTEST_RETRY_S, seconds))

    def check_room(self, key: VersionKey, run: str, num_items: int, num_tokens: int | None = None) -> None:
        """Raises QueueFull where a call of so much would be refused. ``num_tokens`` None: not known yet."""
        least_tokens = num_items if num_tokens is None else num_tokens
        items, tokens = self.num_items + num_items, self.num_tokens + least_tokens
        if (items <= self._max_items and tokens <= self._max_tokens) or self.num_items == 0:
            return
        if items <= 2 * self._max_items and tokens <= 2 * self._max_tokens:
            runs = [(name, queue) for version in self._versions.values() for name, queue in version.runs.items()]
            own = [queue for name, queue in runs if name == run]
            share = 1 / len({run, *(name for name, _ in runs)})
            own_items = num_items + sum(queue.num_items for queue in own)
            own_tokens = least_tokens + sum(queue.num_tokens for queue in own)
            if own_items <= share * self._max_items and own_tokens <= share * self._max_tokens:
                return
        hint_s = self.retry_after_s(least_tokens)
        came = f"{num_items}" if num_tokens is None else f"{num_items} with {num_tokens}"
        raise QueueFull(
            f"{self.num_items} items with {self.num_tokens} tokens wait already, and {came} "
            f"for {version_name(key)} came; the queue holds {self._max_items} items and {self._max_tokens} tokens. "
            f"Try again in {hint_s:.1f} s, or send to another server.",
            retry_after_s=hint_s,
        )

    def _forget_finished_calls(self) -> None:
        # Most calls are done long before their deadline; without this they would lie here until then.
        if len(self._deadlines) > 2 * self.num_items + 1000:
            self._deadlines = [entry for entry in self._deadlines if any(item.is_waiting for item in entry[2].waiting)]
            heapq.heapify(self._deadlines)

    def _weight_of(self, run: str) -> float:
        return self._run_weights.get(run, 1.0)

    def _charge(self, key: VersionKey, batch: Sequence[W]) -> None:
        self._turns.charge(key, sum(item.num_tokens for item in batch))
        self._left(key, batch)

    def _left(self, key: VersionKey, items: Sequence[W]) -> None:
        self.num_items -= len(items)
        self.num_tokens -= sum(item.num_tokens for item in items)
        if self._versions[key].num_items == 0:
            del self._versions[key]
            self._turns.leave(key)
