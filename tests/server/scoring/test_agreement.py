"""Agreement is scipy's on the same pairs, ties included; what is undefined is absent."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rm_server.scoring.comparison.agreement import (
    Estimate,
    agreement,
    kendall,
    kolmogorov_smirnov,
    pearson,
    spearman,
    wilson_interval,
    worst_disagreements,
)

CASES = [
    pytest.param(seed, num, levels, id=f"{num} pairs, {levels or 'no'} levels, seed {seed}")
    for seed, (num, levels) in enumerate(
        [(2, 0), (3, 0), (5, 2), (17, 3), (64, 5), (100, 0), (129, 40), (500, 7), (1000, 0), (4097, 200)]
    )
]


def pairs(seed: int, num: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlated scores; ``levels``: rounded to about so many values, so that there are ties."""
    rng = np.random.default_rng(seed)
    x = rng.normal(3.0, 2.0, num)
    y = 0.7 * x + rng.normal(0.5, 1.5, num)
    return (np.round(x * levels / 8), np.round(y * levels / 8)) if levels else (x, y)


@pytest.mark.parametrize(("seed", "num", "levels"), CASES)
def test_equals_scipy(seed: int, num: int, levels: int) -> None:
    x, y = pairs(seed, num, levels)
    found = agreement(x, y, [str(place) for place in range(num)])
    assert found.pearson is not None
    assert found.spearman is not None
    assert found.pearson.value == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert found.spearman.value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert found.kendall == pytest.approx(stats.kendalltau(x, y, variant="b").statistic, abs=1e-12)
    ks = stats.ks_2samp(x, y)  # exact: the samples are small enough
    assert found.ks_statistic == pytest.approx(ks.statistic, abs=1e-12)
    assert found.ks_p_value == pytest.approx(ks.pvalue, abs=1e-12)
    assert found.shift.value == pytest.approx(float(np.mean(y - x)), abs=1e-12)
    assert found.scale is not None
    assert found.scale.value == pytest.approx(float(np.std(y, ddof=1) / np.std(x, ddof=1)), abs=1e-12)


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_a_perfect_line_is_exactly_one(direction: float) -> None:
    x = np.random.default_rng(3).normal(size=300)
    y = direction * (1e6 * x + 5)
    assert pearson(x, y) == pytest.approx(direction, abs=1e-12)
    assert (spearman(x, y), kendall(x, y)) == (direction, direction)


@pytest.mark.parametrize("scale", [1e-100, 1e100])
def test_scores_far_from_one_have_a_correlation(scale: float) -> None:
    x, y = pairs(1, 50, 0)
    assert pearson(x * scale, y * scale) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)


def test_equal_samples_are_never_told_apart() -> None:
    x = np.array([1.0, 2.0, 2.0, 5.0])
    assert kolmogorov_smirnov(x, x[::-1]) == (0.0, 1.0)


@pytest.mark.parametrize(("x", "y"), [([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]), ([1.0, 2.0, 3.0], [4.0, 4.0, 4.0])])
def test_scores_that_never_differ_have_no_correlation(x: list[float], y: list[float]) -> None:
    found = agreement(np.array(x), np.array(y), ["a", "b", "c"])
    assert (found.pearson, found.spearman, found.kendall, found.scale) == (None, None, None, None)
    assert found.shift.value == pytest.approx(np.mean(y) - np.mean(x))
    assert worst_disagreements(np.array(x), np.array(y), 5) == []


def test_one_pair_says_only_what_one_pair_can() -> None:
    found = agreement(np.array([1.0]), np.array([3.0]), ["a"])
    assert (found.num_pairs, found.shift) == (1, Estimate(2.0))
    assert (found.score_std, found.shift_std, found.pearson, found.flips) == (None, None, None, None)


def test_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="0 scores"):
        agreement(np.array([]), np.array([]), [])


@pytest.mark.parametrize(
    ("scores", "shadow", "num_flipped"),
    [
        ([1, 2], [5, 6], 0),
        ([1, 2], [6, 5], 1),
        ([2, 2], [6, 5], 0),  # both are best by the first version; one of them is by the shadow
        ([2, 2], [5, 5], 0),
        ([2, 2, 1], [5, 5, 6], 1),
        ([3, 2, 1], [6, 6, 7], 1),
        ([3, 3, 1], [1, 7, 7], 0),
    ],
)
def test_a_group_flips_when_no_completion_is_best_by_both(
    scores: list[float], shadow: list[float], num_flipped: int
) -> None:
    x, y = np.array([*scores, 100.0], float), np.array([*shadow, -100.0], float)
    found = agreement(x, y, ["g"] * len(scores) + ["alone"]).flips
    assert found is not None
    assert (found.num_groups, found.num_flipped) == (1, num_flipped)


def test_groups_need_not_lie_together() -> None:
    found = agreement(np.array([1.0, 9.0, 2.0, 8.0]), np.array([1.0, 1.0, 2.0, 2.0]), ["a", "b", "a", "b"]).flips
    assert found is not None
    assert (found.num_groups, found.num_flipped, found.share.value) == (2, 1, 0.5)


def test_wilsons_interval_is_the_published_one() -> None:
    expected = stats.binomtest(7, 50).proportion_ci(method="wilson")
    assert wilson_interval(7 / 50, 50) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_intervals_hold_the_true_values_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(11)
    hits = 0
    for _ in range(40):
        prompt = np.repeat(rng.normal(size=60), 4)  # completions of one prompt resemble each other
        x = prompt + rng.normal(size=240)
        y = x + np.repeat(rng.normal(0.3, 1.0, size=60), 4)
        interval = agreement(x, y, [str(place // 4) for place in range(240)]).shift.interval
        assert interval is not None
        hits += interval[0] <= 0.3 <= interval[1]
    # 95 % of 40 is 38; taking completions for independent gives some 27.
    assert hits >= 34


def test_the_intervals_of_ten_groups_hold_too() -> None:
    rng = np.random.default_rng(5)
    truth = {"pearson": 0.5, "scale": 2.0, "shift": 1.0, "spearman": 6 / np.pi * np.arcsin(0.25)}
    hits = dict.fromkeys(truth, 0)
    for _ in range(200):
        x, noise = np.repeat(rng.normal(size=(2, 10)), 4, axis=1) * 0.6 + rng.normal(size=(2, 40)) * 0.8
        y = 2 * (0.5 * x + 0.75**0.5 * noise) + 1
        found = agreement(x, y, [str(place // 4) for place in range(40)])
        for name, true in truth.items():
            low, high = getattr(found, name).interval
            hits[name] += low <= true <= high
    assert min(hits.values()) / 200 >= 0.92


@pytest.mark.parametrize("size", [2, 16])
def test_completions_of_one_prompt_are_compared_apart_from_what_prompts_have_in_common(size: int) -> None:
    rng = np.random.default_rng(3)
    prompts = 5 * np.repeat(rng.normal(size=400), size)
    x, other = rng.normal(size=(2, 400 * size))
    y = 0.6 * x + 0.8 * other
    groups = [str(place // size) for place in range(400 * size)]
    found = agreement(prompts + x, prompts + y, groups)
    assert found.spearman is not None
    assert found.spearman.value > 0.9
    assert found.within_groups is not None
    assert found.within_groups.interval is not None
    low, high = found.within_groups.interval
    assert 0.4 < low < 0.6 < high < 0.7
    alone = agreement(x, y, [str(place) for place in range(400 * size)])
    assert alone.within_groups is None


def test_scores_turned_round_are_so_without_doubt() -> None:
    x, _ = pairs(5, 90, 0)
    found = agreement(x, 1 - 2 * x, [str(place // 3) for place in range(90)])
    assert found.pearson is not None
    assert found.spearman is not None
    assert found.pearson.interval == found.spearman.interval == (pytest.approx(-1), pytest.approx(-1))


def test_few_groups_give_no_interval() -> None:
    x, y = pairs(5, 90, 0)
    found = agreement(x, y, [str(place % 9) for place in range(90)])
    assert found.shift.interval is None
    assert found.pearson is not None
    assert found.pearson.interval is None


def test_the_worst_disagreement_is_what_neither_shift_nor_scale_explains() -> None:
    x = np.arange(50.0)
    y = 3 * x + 100
    y[20] += 30
    (index, apart), *rest = worst_disagreements(x, y, 3)
    assert index == 20
    assert apart > 0
    assert len(rest) == 2
    assert all(abs(other) < abs(apart) for _, other in rest)
