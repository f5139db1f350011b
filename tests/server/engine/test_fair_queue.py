"""The queue: bounds, turns, ranks, deadlines; and that no item is lost, taken twice or left waiting for ever."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rm_server.engine.fair_queue import FairQueue
from rm_server.engine.waiting import Waiting
from rm_server.errors import QueueFull

A, B = ("a", 1), ("b", 1)


C = ("c", 1)


class Item(Waiting):
    def __init__(self, name: str, num_tokens: int = 10) -> None:
        super().__init__(num_tokens)
        self.name = name

    def __repr__(self) -> str:
        return self.name


def make(
    *,
    max_items: int = 1000,
    max_tokens: int = 100_000,
    run_weights: Mapping[str, float] | None = None,
    max_yield_s: float = 5.0,
) -> FairQueue[Item]:
    return FairQueue(
        max_items=max_items,
        max_tokens=max_tokens,
        max_batch_tokens=100,
        max_yield_s=max_yield_s,
        run_weights=run_weights or {},
        tokens_per_s=100.0,
    )


def offer(queue: FairQueue[Item], names: str, *, num_tokens: int = 10, **options: Any) -> list[Item]:
    """Offers one call with an item for each letter."""
    items = [Item(name, num_tokens) for name in names]
    queue.offer(
        options.pop("key", A),
        options.pop("run", "run"),
        items,
        deadline=options.pop("deadline", None),
        now=options.pop("now", 0.0),
        **options,
    )
    return items


def take(queue: FairQueue[Item], max_tokens: int = 100, max_items: int = 100) -> str:
    """The names of the next batch's items."""
    taken = queue.next_batch(max_tokens, max_items, lambda key: True)
    return "" if taken is None else "".join(item.name for item in taken[1])


# --- order within a run ---


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        # (arrival in s, number of items of 10 tokens, i.e. of 0.1 s each, priority)
        ([(0, 1, 0), (1, 1, 0)], "ab"),
        # A small call passes a large one that came a little earlier …
        ([(0, 20, 0), (1, 1, 0)], "ba"),
        # … not one that came so much earlier that it would have been done,
        ([(0, 20, 0), (3, 1, 0)], "ab"),
        # nor, however large it is, one that came more than max_yield_s earlier.
        ([(0, 900, 0), (4.8, 1, 0)], "ba"),
        ([(0, 900, 0), (5.2, 1, 0)], "ab"),
        # Larger priority goes first, by up to 30 s a step.
        ([(0, 1, 0), (29, 1, 1)], "ba"),
        ([(0, 1, 0), (31, 1, 1)], "ab"),
        ([(0, 1, -1), (29, 1, 0)], "ba"),
        ([(0, 1, 0), (299, 1, 10)], "ba"),
    ],
)
def test_order_of_calls(calls: list[tuple[float, int, int]], expected: str) -> None:
    queue = make()
    for name, (now, num_items, priority) in zip("abc", calls, strict=False):
        offer(queue, name * num_items, now=float(now), priority=priority)
    order = ""
    while batch := take(queue, max_tokens=10):
        order += batch if batch not in order else ""
    assert order == expected


# --- turns ---


def test_others_ride_along_as_far_as_there_is_room_and_pay_for_it() -> None:
    queue = make()
    for key, names in ((A, "a" * 20), (B, "b" * 20), (C, "c" * 20)):
        offer(queue, names, key=key)
    assert take(queue) == "a" * 10
    # In their turns' order, and only those that may.
    along = queue.take_along([C, A], 150, 100)
    assert [item.name for item in along] == ["a"] * 10 + ["c"] * 5
    assert queue.take_along([B], 30, 2)[0].name == "b"
    assert (queue.num_items, queue.num_tokens) == (33, 330)
    # It is still b's turn, and what c had is taken off its own: 5 of 10.
    assert [take(queue, max_tokens=10)[:1] for _ in range(17)] == ["b"] * 8 + ["c"] * 5 + ["b"] * 4
    assert queue.take_along([A, B], 0, 100) == []
    assert queue.take_along([A], 100, 100) == []


def test_what_does_not_fit_does_not_ride_along() -> None:
    queue = make()
    offer(queue, "a", num_tokens=60, key=A)
    offer(queue, "b", num_tokens=20, key=A, run="other")
    assert [item.name for item in queue.take_along([A], 50, 100)] == ["b"]
    assert queue.take_along([A], 50, 100) == []
    assert take(queue) == "a"


def test_versions_take_turns_by_tokens() -> None:
    queue = make()
    offer(queue, "a" * 30, key=A)
    offer(queue, "b" * 30, key=B)
    assert [take(queue) for _ in range(4)] == ["a" * 10, "b" * 10, "a" * 10, "b" * 10]


def test_a_batch_is_of_a_version_that_can_be_taken() -> None:
    queue = make()
    offer(queue, "a", key=A)
    offer(queue, "b", key=B)
    taken = queue.next_batch(100, 100, lambda key: key == B)
    assert taken is not None
    assert taken[0] == B
    assert queue.next_batch(100, 100, lambda key: key == B) is None


def test_a_light_run_is_in_the_next_batch_whatever_a_heavy_one_has_waiting() -> None:
    queue = make()
    offer(queue, "h" * 900, run="heavy")
    take(queue)
    offer(queue, "l", run="light")
    assert "l" in take(queue, max_tokens=1000)


# --- bounds ---


def test_refuses_a_call_as_a_whole_with_a_hint() -> None:
    queue = make(max_items=5)
    offer(queue, "aaaa")
    with pytest.raises(QueueFull, match="4 items with 40 tokens wait already, and 2 with 20") as refused:
        offer(queue, "bb")
    # Half of 60 tokens at 100 tokens a second.
    assert refused.value.retry_after_s == pytest.approx(0.3)
    assert (queue.num_items, queue.num_tokens) == (4, 40)
    offer(queue, "b")


def test_tokens_are_bounded_too() -> None:
    queue = make(max_tokens=50)
    offer(queue, "aaaa")
    with pytest.raises(QueueFull):
        offer(queue, "b", num_tokens=20)


@pytest.mark.parametrize(("tokens_per_s", "expected"), [(1e9, 0.1), (1e-3, 60.0), (10.0, 5.0)])
def test_the_hint_follows_the_measured_rate_within_reason(tokens_per_s: float, expected: float) -> None:
    queue = make()
    offer(queue, "a" * 9)
    queue.tokens_per_s = tokens_per_s
    assert queue.retry_after_s(10) == pytest.approx(expected)


def test_a_call_larger_than_the_bounds_is_taken_when_nothing_waits() -> None:
    queue = make(max_items=5)
    offer(queue, "a" * 7)
    with pytest.raises(QueueFull):
        offer(queue, "b")


def test_a_run_below_its_share_gets_into_a_full_queue_and_others_do_not() -> None:
    queue = make(max_items=10)
    offer(queue, "h" * 10, run="heavy")
    with pytest.raises(QueueFull):
        offer(queue, "h", run="heavy")
    # Half of ten: there are two runs now.
    offer(queue, "lllll", run="light")
    with pytest.raises(QueueFull):
        offer(queue, "l", run="light")


def test_not_even_many_runs_fill_the_queue_beyond_twice_its_bounds() -> None:
    queue = make(max_items=100)
    offer(queue, "x" * 100, run="run 1")
    offer(queue, "x" * 50, run="run 2")
    offer(queue, "x" * 33, run="run 3")
    with pytest.raises(QueueFull):
        # A quarter would be its share.
        offer(queue, "x" * 25, run="run 4")


def test_an_empty_call_changes_nothing() -> None:
    queue = make()
    offer(queue, "")
    assert (queue.num_items, take(queue)) == (0, "")


# --- what nobody wants any more ---


def test_expired_items_are_returned_once_and_never_taken() -> None:
    queue = make()
    offer(queue, "ab", deadline=5.0)
    offer(queue, "c", deadline=6.0)
    offer(queue, "d")
    assert queue.expire(4.9) == []
    assert [item.name for item in queue.expire(5.0)] == ["a", "b"]
    assert queue.expire(5.0) == []
    assert (queue.num_items, take(queue)) == (2, "cd")
    assert queue.expire(100.0) == []


def test_dropped_items_make_room_at_once() -> None:
    queue = make(max_items=3)
    first, *_ = offer(queue, "abc")
    queue.drop(first)
    queue.drop(first)
    offer(queue, "d")
    assert take(queue) == "bcd"


def test_calls_that_are_done_are_forgotten_before_their_deadline() -> None:
    queue = make()
    for number in range(5000):
        offer(queue, "a", deadline=1e6, now=float(number))
        take(queue)
    assert len(queue._deadlines) < 2000


def test_takes_out_all_that_waits_for_a_version() -> None:
    queue = make()
    offer(queue, "ab", key=A, run="x")
    offer(queue, "c", key=A, run="y")
    offer(queue, "d", key=B)
    assert sorted(item.name for item in queue.take_all(A)) == ["a", "b", "c"]
    assert [item.name for item in queue.take_all()] == ["d"]
    assert (queue.num_items, queue.num_tokens, take(queue)) == (0, 0, "")


def test_knows_when_a_batch_is_full() -> None:
    queue = make()
    offer(queue, "a" * 9, key=A)
    offer(queue, "b" * 9, key=B)
    assert not queue.has_full_batch(100, 100)
    assert queue.has_full_batch(90, 100)
    assert queue.has_full_batch(100, 9)


# --- everything at once ---


class QueueMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, each item is taken, dropped or expired exactly once."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = make(max_items=60, max_tokens=3000, run_weights={"b": 3.0})
        self.now = 0.0
        self.waiting: set[Item] = set()

    @rule(
        key=st.sampled_from([A, B]),
        run=st.sampled_from("abc"),
        lengths=st.lists(st.integers(0, 200), max_size=12),
        priority=st.integers(-10, 10),
        patience_s=st.none() | st.floats(0.1, 20),
    )
    def offer(
        self, key: tuple[str, int], run: str, lengths: list[int], priority: int, patience_s: float | None
    ) -> None:
        items = [Item("x", length) for length in lengths]
        deadline = None if patience_s is None else self.now + patience_s
        try:
            self.queue.offer(key, run, items, priority=priority, deadline=deadline, now=self.now)
        except QueueFull:
            assert not any(item.is_waiting for item in items)
        else:
            self.waiting |= set(items)

    @rule(max_tokens=st.integers(1, 300), max_items=st.integers(1, 20))
    def take(self, max_tokens: int, max_items: int) -> None:
        taken = self.queue.next_batch(max_tokens, max_items, lambda key: True)
        if taken is None:
            assert not self.waiting
            return
        key, batch = taken
        assert 1 <= len(batch) <= max_items
        assert len(batch) == 1 or sum(item.num_tokens for item in batch) <= max_tokens
        assert {item.call.key for item in batch if item.call is not None} == {key}
        assert set(batch) <= self.waiting
        assert len(set(batch)) == len(batch)
        self.waiting -= set(batch)

    @rule(seconds=st.floats(0, 10))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        expired = set(self.queue.expire(self.now))
        late = {
            item
            for item in self.waiting
            if item.call is not None and item.call.deadline is not None and item.call.deadline <= self.now
        }
        assert expired == late
        self.waiting -= expired

    @rule(index=st.integers(0, 100))
    def drop(self, index: int) -> None:
        if self.waiting:
            item = sorted(self.waiting, key=id)[index % len(self.waiting)]
            self.queue.drop(item)
            self.waiting.discard(item)

    @invariant()
    def counts_what_waits(self) -> None:
        assert self.queue.num_items == len(self.waiting)
        assert self.queue.num_tokens == sum(item.num_tokens for item in self.waiting)


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=60, stateful_step_count=40)


@settings(max_examples=40)
@given(st.data())
def test_nothing_waits_for_ever_behind_work_that_keeps_coming(data: st.DataObject) -> None:
    """New calls of any size come as fast as batches go out; a first call is done within what the bounds promise."""
    queue = make(max_yield_s=5.0)
    first = offer(queue, "abcdefgh", num_tokens=data.draw(st.integers(1, 99)), run="r0", now=0.0)
    num_runs = data.draw(st.integers(1, 4))
    now = 0.0
    for _ in range(400):
        offer(
            queue,
            "x" * data.draw(st.integers(1, 3)),
            num_tokens=data.draw(st.integers(1, 99)),
            run=f"r{data.draw(st.integers(0, num_runs - 1))}",
            now=now,
        )
        taken = queue.next_batch(100, 100, lambda key: True)
        assert taken is not None
        now += sum(item.num_tokens for item in taken[1]) / 100.0
        if not any(item.is_waiting for item in first):
            return
    # Its own 8 items of at most 1 s and 5 s of yielding, each of the runs having the same share.
    assert now < num_runs * (5.0 + 8.0 + 5.0)
