"""Turns by tokens, computed by hand for quanta of 100."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_server.engine.turns import MAX_REMEMBERED, Turns


def spend(turns: Turns[str], costs: dict[str, int], num_items: int) -> list[str]:
    """Whose items are taken, one after the other, when each of a key's items costs the same."""
    taken = []
    for _ in range(num_items):
        key = turns.next()
        assert key is not None
        turns.charge(key, costs[key])
        taken.append(key)
    return taken


@pytest.mark.parametrize(
    ("costs", "weights", "expected"),
    [
        ({"a": 50}, {}, "aaaa"),
        ({"a": 50, "b": 50}, {}, "aabbaabb"),
        # Twice the cost, half as many: the same tokens.
        ({"a": 100, "b": 50}, {}, "abbabbabb"),
        # An item longer than the quantum overdraws, and the next turns pay that back.
        ({"a": 300, "b": 100}, {}, "abbbabbb"),
        # Three times the weight, three times the tokens.
        ({"a": 100, "b": 100}, {"a": 3.0}, "aaabaaab"),
    ],
)
def test_shares_are_in_tokens_and_by_weight(costs: dict[str, int], weights: dict[str, float], expected: str) -> None:
    turns: Turns[str] = Turns(100, lambda key: weights.get(key, 1.0))
    for key in costs:
        turns.join(key)
    assert "".join(spend(turns, costs, len(expected))) == expected


def test_a_newcomer_comes_last_and_gets_its_turn() -> None:
    turns: Turns[str] = Turns(100)
    turns.join("a")
    turns.charge("a", 1000)
    turns.join("b")
    assert turns.next() == "b"


def test_skips_those_who_cannot_be_served_now() -> None:
    turns: Turns[str] = Turns(100)
    turns.join("a")
    turns.join("b")
    assert turns.next(skip=["a"]) == "b"
    assert turns.next(skip=["a", "b"]) is None
    turns.leave("b")
    assert turns.next() == "a"


def test_nobody_is_next_where_nobody_has_work() -> None:
    turns: Turns[str] = Turns(100)
    turns.join("a")
    turns.leave("a")
    assert turns.next() is None
    assert "a" not in turns


@pytest.mark.parametrize(
    ("max_credit_tokens", "weights", "expected"),
    [
        (0, {}, "aabb"),
        # Half of the 400 that "b" used meanwhile, and the quantum.
        (1000, {}, "aaaaaabb"),
        (100, {}, "aaaabb"),
        # Three quarters of them, and three quanta.
        (1000, {"a": 3.0}, "aaaaaaaaaaaabb"),
    ],
)
def test_who_comes_back_may_use_its_share_of_what_the_others_used(
    max_credit_tokens: int, weights: dict[str, float], expected: str
) -> None:
    turns: Turns[str] = Turns(100, lambda key: weights.get(key, 1.0), max_credit_tokens)
    for key in "ab":
        turns.join(key)
    turns.leave("a")
    spend(turns, {"b": 50}, 8)
    turns.join("a")
    spend(turns, {"b": 50}, 0 if turns.next() == "a" else 2)  # what is left of the turn of "b"
    assert "".join(spend(turns, {"a": 50, "b": 50}, len(expected))) == expected


def test_a_newcomer_and_who_left_an_idle_ring_have_no_credit() -> None:
    turns: Turns[str] = Turns(100, max_credit_tokens=1000)
    turns.join("a")
    turns.leave("a")
    turns.join("b")
    turns.join("a")
    turns.join("c")
    assert "".join(spend(turns, {"a": 50, "b": 50, "c": 50}, 9)) == "bbaaccbba"


@given(call=st.integers(1, 20), pause=st.integers(0, 40), rounds=st.integers(5, 30))
def test_credit_gives_nobody_more_than_its_share(call: int, pause: int, rounds: int) -> None:
    turns: Turns[str] = Turns(100, max_credit_tokens=1000)
    tokens = {"a": 0, "b": 0}
    turns.join("b")
    for _ in range(rounds):
        turns.join("a")
        left = call
        while left:
            (key,) = spend(turns, {"a": 50, "b": 50}, 1)
            tokens[key] += 50
            left -= key == "a"
        turns.leave("a")
        # Its next call can come when this one is answered: a batch of the others' later, at the earliest.
        tokens["b"] += 50 * len(spend(turns, {"b": 50}, call + pause))
    assert tokens["a"] <= tokens["b"] + 1100


def test_only_so_many_are_remembered() -> None:
    turns: Turns[int] = Turns(100, max_credit_tokens=1000)
    turns.join(-1)
    for key in range(MAX_REMEMBERED + 1):
        turns.join(key)
        turns.leave(key)
    turns.charge(-1, 400)
    for key, expected in ((0, 100), (1, 300)):
        turns.join(key)
        assert turns.next(skip=[-1]) == key
        turns.charge(key, expected - 1)
        assert turns.next(skip=[-1]) == key
        turns.leave(key)


def test_idle_time_earns_nothing_without_credit() -> None:
    turns: Turns[str] = Turns(100)
    for key in "ab":
        turns.join(key)
    turns.leave("a")
    spend(turns, {"b": 100}, 10)
    turns.join("a")
    # "a" has one quantum, not ten.
    assert spend(turns, {"a": 100, "b": 100}, 4).count("a") == 2


@given(
    costs=st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 700), min_size=2),
    num_items=st.integers(50, 400),
)
def test_nobody_falls_behind_by_more_than_a_quantum_and_an_item(costs: dict[str, int], num_items: int) -> None:
    turns: Turns[str] = Turns(100)
    for key in costs:
        turns.join(key)
    tokens = dict.fromkeys(costs, 0)
    for key in spend(turns, costs, num_items):
        tokens[key] += costs[key]
    assert max(tokens.values()) - min(tokens.values()) <= 2 * (100 + max(costs.values()))
