"""The pure parts of the benchmarks: workload and statistics."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import numpy as np
import pytest

from bench import load, statistics, workload

VOCABULARY = workload.Vocabulary(tuple(f"w{number}" for number in range(500)), num_special_tokens=2, max_tokens=1024)


def test_lengths_have_the_median_and_the_95th_percentile_that_are_stated() -> None:
    lengths = workload.lengths(np.random.default_rng(0), 20_000, max_tokens=1024)
    assert np.median(lengths) == pytest.approx(180, rel=0.03)
    assert np.percentile(lengths, 95) == pytest.approx(600, rel=0.05)
    assert min(lengths) >= workload.MIN_TOKENS
    assert max(lengths) == 1024


def test_items_have_as_many_words_as_they_say_and_come_again_with_the_seed() -> None:
    found = workload.items(VOCABULARY, 50, seed=1)
    assert all(len(item.text.split()) + VOCABULARY.num_special_tokens == item.num_tokens for item in found)
    assert all(item.prompt and item.completion for item in found)
    assert found == workload.items(VOCABULARY, 50, seed=1) != workload.items(VOCABULARY, 50, seed=2)


def test_strangers_are_the_same_items_and_no_neighbours_share_a_prompt() -> None:
    groups = workload.groups(VOCABULARY, 16, seed=1)
    calls = workload.as_strangers(groups)
    in_order = [item for call in calls for item in call]
    assert sorted(in_order, key=str) == sorted((item for group in groups for item in group), key=str)
    assert all(one.prompt != other.prompt for one, other in pairwise(in_order))
    assert {len(call) for call in calls} == {workload.GROUP_SIZE}


async def test_a_call_counts_by_what_of_it_lies_in_the_window() -> None:
    async def send(request: bytes) -> list[float]:
        await asyncio.sleep(float(request))
        return [0.0]

    # One call of a second and calls of a tenth, all at 1 000 tokens a second: two callers do 2 000.
    calls = [[load.Call(b"1.0", 1, 1000)], [load.Call(b"0.1", 1, 100)]]
    answers = await load.closed_loop(send, calls, warm_up_s=0.25, seconds=0.5)
    assert {answer.is_late for answer in answers if answer.caller == 0} == {True}
    found = load.throughput(answers)
    assert found.tokens_per_s == pytest.approx(2000, rel=0.1)
    assert max(found.latencies_s) < 0.5


def test_arrivals_come_at_the_rate_within_the_time() -> None:
    times = list(workload.arrivals(np.random.default_rng(0), per_s=50, seconds=100))
    assert len(times) == pytest.approx(5000, rel=0.05)
    assert times == sorted(times)
    assert 0 < times[0] < times[-1] < 100


@pytest.mark.parametrize(("share", "expected"), [(0.5, 5), (0.95, 10), (0.9, 9), (1.0, 10), (0.01, 1)])
def test_percentiles_are_values_that_occurred(share: float, expected: float) -> None:
    assert statistics.percentile([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], share) == expected


def test_a_slow_round_does_not_change_the_ratio() -> None:
    assert statistics.median_ratio([10, 1, 11], [20, 2, 22]) == 0.5


@pytest.mark.parametrize(("shares", "expected"), [([5, 5, 5, 5], 1.0), ([1, 0, 0, 0], 0.25), ([1, 3], 0.8)])
def test_jain_index(shares: list[float], expected: float) -> None:
    assert statistics.jain_index(shares) == pytest.approx(expected)


def test_what_sharing_saves_is_each_prompt_but_the_first() -> None:
    # Of 3 × 261 tokens, 201 of two prompts and the special tokens before them.
    group = [workload.Item("prompt", "completion", 261)] * 3
    assert workload.token_ratio([group] * 2) == pytest.approx(783 / (783 - 402))
