"""What makes the next batch: tables of items in, batches out. An item is written as its length."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest

from rm_server.backends.items import EncodedItem
from rm_server.engine.batcher import VersionQueue, in_batches
from rm_server.engine.waiting import Call, Waiting


def queue_of(*calls: tuple[str, Sequence[int]], weights: dict[str, float] | None = None) -> VersionQueue[Waiting]:
    """Calls (run, lengths of their items), in the order in which they came."""
    queue: VersionQueue[Waiting] = VersionQueue(lambda run: (weights or {}).get(run, 1.0), 100)
    for number, (run, lengths) in enumerate(calls):
        call: Call[Waiting] = Call(("m", 1), run, rank=number, number=number, deadline=None)
        for length in lengths:
            item = Waiting(length)
            item.call, item.is_waiting = call, True
            call.waiting.append(item)
        queue.push(call)
    return queue


def batches(queue: VersionQueue[Waiting], max_tokens: int, max_items: int = 100) -> list[list[tuple[str, int]]]:
    """All batches, as (run, length) of their items."""
    made = []
    while queue.num_items:
        batch = queue.next_batch(max_tokens, max_items)
        assert batch
        made.append([(item.call.run, item.num_tokens) for item in batch if item.call is not None])
    assert (queue.num_tokens, queue.runs) == (0, {})
    return made


def lengths(made: list[list[tuple[str, int]]]) -> list[list[int]]:
    return [[length for _, length in batch] for batch in made]


@pytest.mark.parametrize(
    ("waiting", "max_tokens", "expected"),
    [
        ([10, 20, 30], 100, [[10, 20, 30]]),
        ([40, 40, 40], 100, [[40, 40], [40]]),
        # Exactly full.
        ([50, 50, 50], 100, [[50, 50], [50]]),
        # A long item does not hold those behind it, and opens the next batch.
        ([60, 70, 30, 10], 100, [[60, 30, 10], [70]]),
        # Longer than the budget: alone, and not the last.
        ([10, 300, 20], 100, [[10, 20], [300]]),
        ([300, 10], 100, [[300], [10]]),
        ([], 100, []),
    ],
)
def test_fills_the_budget(waiting: list[int], max_tokens: int, expected: list[list[int]]) -> None:
    assert lengths(batches(queue_of(("a", waiting)) if waiting else queue_of(), max_tokens)) == expected


def test_takes_no_more_items_than_allowed() -> None:
    assert lengths(batches(queue_of(("a", [1, 2, 3, 4, 5])), 1000, max_items=2)) == [[1, 2], [3, 4], [5]]


def test_runs_share_a_batch_by_tokens() -> None:
    queue = queue_of(("heavy", [128] * 100), ("light", [128] * 10))
    batch = [item.call.run for item in queue.next_batch(2048, 100) if item.call is not None]
    assert (batch.count("heavy"), batch.count("light")) == (8, 8)


def test_a_heavier_run_gets_more_of_a_batch() -> None:
    queue = queue_of(("a", [128] * 100), ("b", [128] * 100), weights={"b": 3.0})
    batch = [item.call.run for item in queue.next_batch(4096, 100) if item.call is not None]
    assert (batch.count("a"), batch.count("b")) == (8, 24)


def test_a_light_run_does_not_wait_for_a_batch_full_of_a_heavy_ones_items() -> None:
    queue = queue_of(("heavy", [100] * 100), ("light", [100] * 6))
    batch = [item.call.run for item in queue.next_batch(2000, 100) if item.call is not None]
    # Two turns of the light run, two of the heavy one; 800 more tokens would fit.
    assert (batch.count("light"), batch.count("heavy")) == (6, 6)
    # It is half full, however little the light run has.
    assert len(queue_of(("heavy", [100] * 100), ("light", [100] * 2)).next_batch(2000, 100)) == 10
    # Where nobody has batches of work, or nobody is done, it is filled.
    assert len(queue_of(("a", [100] * 10), ("light", [100] * 6)).next_batch(2000, 100)) == 16
    assert len(queue_of(("heavy", [100] * 100), ("other", [100] * 100)).next_batch(2000, 100)) == 20


def test_a_call_lies_together_in_a_batch_though_turns_alternate() -> None:
    queue = queue_of(("a", [300, 301, 302]), ("b", [400, 401, 402]))
    assert batches(queue, 4096) == [[("a", 300), ("a", 301), ("a", 302), ("b", 400), ("b", 401), ("b", 402)]]


def test_a_long_item_of_one_run_does_not_hold_the_others() -> None:
    assert batches(queue_of(("a", [60, 70]), ("b", [30])), 100) == [[("a", 60), ("b", 30)], [("a", 70)]]


def test_a_long_item_is_passed_over_by_no_more_batches_than_there_are_runs() -> None:
    # Turns alone would not do: the turn of the long run would always come in the middle of a batch.
    made = batches(queue_of(("short", [60] * 40), ("long", [90] * 3)), 100)
    assert [number for number, batch in enumerate(made) if ("long", 90) in batch] == [2, 4, 6]


def test_what_is_taken_along_by_others_costs_a_long_item_no_turn() -> None:
    queue = queue_of(("a", [90] * 3), ("b", [90] * 3))
    opened = []
    while queue.num_items:
        assert queue.next_batch(10, 100, fits_only=True) == []  # another version's batch has room for short ones
        (item,) = queue.next_batch(100, 100)
        assert item.call is not None
        opened.append(item.call.run)
    assert opened == ["a", "b"] * 3


def test_thousands_of_runs_do_not_hold_up_a_batch() -> None:
    started = time.thread_time()
    queue = queue_of(*((f"run {number}", [60]) for number in range(8000)))
    assert time.thread_time() - started < 4  # where each that comes goes through all, 20 s
    started = time.thread_time()
    assert len(queue.next_batch(100, 100)) == 1  # nobody else's fits into the rest
    assert time.thread_time() - started < 1  # looked up in lists, 5 s


def test_what_is_dropped_is_not_in_a_batch() -> None:
    queue = queue_of(("a", [10, 20, 30]), ("b", [40]))
    for item in [*queue.runs["a"].items()[:2], *queue.runs["b"].items()]:
        queue.drop(item)
    assert (queue.num_items, queue.num_tokens, list(queue.runs)) == (1, 30, ["a"])
    assert queue.runs["a"].num_tokens == 30  # by which a full queue lets the run in or not
    assert batches(queue, 100) == [[("a", 30)]]


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([], []),
        ([40, 40, 40], [[40, 40], [40]]),
        ([300, 10, 20], [[300], [10, 20]]),
        ([1, 1, 1, 1], [[1, 1, 1], [1]]),
    ],
)
def test_cuts_trial_items_into_batches(items: list[int], expected: list[list[int]]) -> None:
    encoded = [EncodedItem(np.zeros(length, np.int32), length) for length in items]
    made = in_batches(encoded, max_tokens=100, max_items=3)
    assert [[item.num_tokens for item in batch] for batch in made] == expected
