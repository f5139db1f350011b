"""Which of the items that wait for one version make its next batch, within a budget of tokens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Generic

from rm_server.backends.items import EncodedItem
from rm_server.engine.turns import Turns
from rm_server.engine.waiting import Call, RunQueue, W

RUN_QUANTUM_TOKENS = 512
"""What a run of weight 1 may take in its turn: small beside a batch, so that a batch holds many turns."""

SMALLEST_PART_TOKENS = 512
"""Idle workers share what waits, but not in parts smaller than this: each batch has its fixed cost."""


def batch_budget_tokens(waiting_tokens: int, num_idle: int, max_batch_tokens: int) -> int:
    """The budget of the next batch when ``num_idle`` workers have nothing to do: they share what waits."""
    part = -(-waiting_tokens // max(1, num_idle))
    return min(max_batch_tokens, max(SMALLEST_PART_TOKENS, part))


class VersionQueue(Generic[W]):
    """What waits for one version, by run."""

    def __init__(self, weight_of: Callable[[str], float], max_batch_tokens: int) -> None:
        self.runs: dict[str, RunQueue[W]] = {}
        self._turns: Turns[str] = Turns(RUN_QUANTUM_TOKENS, weight_of, max_credit_tokens=max_batch_tokens)
        # Runs whose first item was too long for the rest of a batch. Each batch begins with one of them. There may be
        # thousands, as of those with nothing that fits into a batch: none of them is looked for in a list.
        self._passed_over: OrderedDict[str, None] = OrderedDict()
        self.num_items = 0
        self.num_tokens = 0

    def push(self, call: Call[W]) -> None:
        """Takes a call with all its items."""
        run = self.runs.setdefault(call.run, RunQueue())
        run.push(call)
        self._turns.join(call.run)
        self.num_items += len(call.waiting)
        self.num_tokens += sum(waiting.num_tokens for waiting in call.waiting)

    def drop(self, waiting: W) -> None:
        """Takes out an item that nobody wants any more. It must be waiting here."""
        assert waiting.call is not None
        run = waiting.call.run
        self.runs[run].forget(waiting)
        self._left(run, waiting)

    def next_batch(self, max_tokens: int, max_items: int, *, fits_only: bool = False) -> list[W]:
        """Takes the next batch: runs in turn, until the budget is full or nothing that waits fits into the rest.

        An item longer than ``max_tokens`` goes alone, or not at all if ``fits_only``. A long item that does not fit
        into the rest lets shorter ones go first, once: its run opens one of the next batches, at the latest after as
        many batches as there are runs.
        The items of a call lie side by side in the batch, in the call's order. Where the batch holds the last items of
        a run, and another one has whole batches of work, half full is enough: the light run need not wait while the
        heavy one's items are computed along with its own.
        """
        batch: list[W] = []
        left_tokens = max_tokens
        full: set[str] = set()
        is_run_done = False
        # It may be too long for another version's batch, and would lose its turn to open one of its own.
        opener = None if fits_only else self._opener()
        while left_tokens > 0 and len(batch) < max_items:
            run = opener or self._turns.next(skip=full)
            opener = None
            if run is None:
                break
            waiting, is_passed_over = self.runs[run].pop(left_tokens if batch or fits_only else None)
            if is_passed_over:
                self._passed_over.setdefault(run)
            if waiting is None:
                full.add(run)
                continue
            batch.append(waiting)
            left_tokens -= waiting.num_tokens
            self._turns.charge(run, waiting.num_tokens)
            self._left(run, waiting)
            is_run_done = is_run_done or run not in self.runs
            if is_run_done and 2 * left_tokens <= max_tokens and self._has_heavy_run(max_tokens):
                break
        batch.sort(key=_number_of_call)
        return batch

    def _has_heavy_run(self, max_tokens: int) -> bool:
        return any(run.num_tokens > max_tokens for run in self.runs.values())

    def _opener(self) -> str | None:
        while self._passed_over:
            run, _ = self._passed_over.popitem(last=False)
            if run in self.runs:
                return run
        return None

    def _left(self, run: str, waiting: W) -> None:
        self.num_items -= 1
        self.num_tokens -= waiting.num_tokens
        if self.runs[run].num_items == 0:
            del self.runs[run]
            self._turns.leave(run)


def in_batches(items: Iterable[EncodedItem], max_tokens: int, max_items: int) -> list[list[EncodedItem]]:
    """The items in their order, cut into batches within the budget; a longer item is alone in its batch."""
    batches: list[list[EncodedItem]] = []
    left_tokens = 0
    for item in items:
        if not batches or item.num_tokens > left_tokens or len(batches[-1]) >= max_items:
            batches.append([])
            left_tokens = max_tokens
        batches[-1].append(item)
        left_tokens -= item.num_tokens
    return batches


def _number_of_call(waiting: W) -> int:
    assert waiting.call is not None
    return waiting.call.number
