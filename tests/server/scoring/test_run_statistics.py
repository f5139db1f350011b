"""Counts, mean and deviation of runs, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_server.scoring.run_statistics import AllRunStatistics


@given(st.lists(st.lists(st.floats(-1e6, 1e6), max_size=20), max_size=10))
def test_mean_and_deviation_are_those_of_all_scores(calls: list[list[float]]) -> None:
    statistics = AllRunStatistics(10)
    for number, scores in enumerate(calls):
        statistics.add("r", "m", 1, None, scores=scores, tokens=7, now=float(number))
    scores = [score for call in calls for score in call]
    known = statistics.get("r", "m")
    if known is None:
        assert not calls
        return
    assert (known.items, known.tokens) == (len(scores), 7 * len(calls))
    if scores:
        assert known.score_mean == pytest.approx(np.mean(scores), rel=1e-9, abs=1e-6)
        assert known.score_std == pytest.approx(np.std(scores), rel=1e-6, abs=1e-6)


def test_large_scores_with_small_spread_keep_their_deviation() -> None:
    statistics = AllRunStatistics(10)
    for _ in range(1000):
        statistics.add("r", "m", 1, None, scores=[1e9, 1e9 + 1], tokens=2, now=0.0)
    known = statistics.get("r", "m")
    assert known is not None
    assert known.score_std == pytest.approx(0.5, rel=1e-6)


def test_another_version_begins_anew_and_keeps_the_counts() -> None:
    statistics = AllRunStatistics(10)
    statistics.add("r", "m", 1, None, scores=[1.0, 3.0], tokens=10, now=1.0)
    statistics.add("r", "m", 2, "b", scores=[7.0], tokens=5, now=2.0)
    known = statistics.get("r", "m")
    assert known is not None
    assert (known.version, known.arm, known.items, known.tokens, known.last_seen) == (2, "b", 3, 15, 2.0)
    assert (known.score_mean, known.score_std) == (7.0, 0.0)


def test_runs_and_models_are_apart_and_the_one_seen_longest_ago_goes() -> None:
    statistics = AllRunStatistics(2)
    for run, model in (("a", "m"), ("b", "m"), ("a", "m"), ("a", "n")):
        statistics.add(run, model, 1, None, scores=[1.0], tokens=1, now=0.0)
    assert [(known.run, known.model) for known in statistics] == [("a", "m"), ("a", "n")]
