"""What it costs to compute a version otherwise: figures that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rm_server.training.score_change import accuracy_change, score_change


def test_differences_and_order() -> None:
    change = score_change(np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.5, 1.5, 3.0, 2.5]))
    assert (change.num_texts, change.max_difference) == (4, 1.0)
    assert change.mean_absolute_difference == pytest.approx((0.5 + 0.5 + 1.0 + 0.5) / 4)
    assert change.mean_difference == pytest.approx((0.5 + 0.5 + 1.0 - 0.5) / 4)
    assert change.score_std == pytest.approx(np.sqrt(1.25))
    assert change.spearman == pytest.approx(0.8)


def test_constant_scores_have_no_order() -> None:
    assert score_change(np.ones(3), np.array([1.0, 2.0, 3.0])).spearman is None
    assert score_change(np.ones(1), np.ones(1)).spearman is None
    with pytest.raises(ValueError, match="no texts"):
        score_change(np.empty(0), np.empty(0))


def test_accuracy_is_compared_pair_by_pair_and_clustered_by_prompt() -> None:
    before = np.array([1.0, 1.0, 1.0, -1.0])
    after = np.array([1.0, -0.1, 2.0, -1.0])
    change = accuracy_change(before, after, ["a", "a", "b", "c"])
    assert (change.num_pairs, change.num_prompts, change.num_changed) == (4, 3, 1)
    assert (change.before.value, change.after.value, change.difference.value) == (0.75, 0.5, -0.25)
    interval = change.difference.interval
    assert interval is not None
    assert interval[0] < -0.25 < interval[1]
    # Nothing changed on these pairs, which are too few to say so of others.
    same = accuracy_change(before, before * 2, ["a", "a", "b", "c"])
    assert (same.difference.value, same.num_changed) == (0.0, 0)
    assert same.difference.interval == pytest.approx((-0.7, 0.7), abs=0.01)
