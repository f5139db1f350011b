"""Counts, mean, deviation and rates of a run, against numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_server.registry.run_records import RATE_WINDOW_S, RunStatistics

Calls = list[list[float]]
CALLS = st.lists(st.lists(st.floats(-1e6, 1e6), max_size=20), max_size=10)


def statistics_of(calls: Calls, started: float = 0.0) -> RunStatistics:
    statistics = RunStatistics("r", "m", 1)
    for number, scores in enumerate(calls):
        statistics.add(scores, 7, started + number)
    return statistics


@given(CALLS, CALLS)
def test_merged_parts_are_as_all_scores_together(here: Calls, there: Calls) -> None:
    known = statistics_of(here)
    known.merge(statistics_of(there))
    scores = [score for call in (*here, *there) for score in call]
    assert (known.num_items, known.num_tokens) == (len(scores), 7 * (len(here) + len(there)))
    if scores:
        assert known.score_mean == pytest.approx(np.mean(scores), rel=1e-9, abs=1e-6)
        assert known.score_std == pytest.approx(np.std(scores), rel=1e-6, abs=1e-6)
    else:
        assert (known.score_mean, known.score_std) == (0.0, 0.0)


def test_large_scores_with_small_spread_keep_their_deviation() -> None:
    known = statistics_of([[1e9, 1e9 + 1]] * 1000)
    assert known.score_std == pytest.approx(0.5, rel=1e-6)


def test_the_rates_are_those_of_the_last_minute() -> None:
    statistics = RunStatistics("r", "m", 1)
    for second in range(600):
        statistics.add([0.5, 0.5, 0.5], 100, float(second))
    # The mean of what came each second, with a weight that falls by e in RATE_WINDOW_S.
    steady = 1 / RATE_WINDOW_S / (1 - math.exp(-1 / RATE_WINDOW_S))
    assert statistics.rates(599.0) == pytest.approx((3 * steady, 100 * steady), rel=1e-4)
    assert statistics.rates(599.0 + RATE_WINDOW_S) == pytest.approx((3 / math.e, 100 / math.e), rel=0.02)


def test_rates_of_two_servers_add_up_whoever_writes_first() -> None:
    early, late = statistics_of([[1.0]], started=10.0), statistics_of([[1.0]], started=40.0)
    one, other = statistics_of([[1.0]], started=10.0), statistics_of([[1.0]], started=40.0)
    early.merge(late)
    other.merge(one)
    assert early.rates(50.0) == pytest.approx(other.rates(50.0))
    assert early.last_seen == other.last_seen == 40.0


def test_scores_at_the_end_of_the_floats_leave_mean_and_deviation_finite() -> None:
    statistics = statistics_of([[1.7e308, 1.7e308, -1.7e308], [1.0]])
    statistics.merge(statistics_of([[-1.7e308]]))
    assert statistics.num_items == 5
    assert math.isfinite(statistics.score_mean)
    assert math.isfinite(statistics.score_std)
