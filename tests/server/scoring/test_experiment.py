"""Intervals, tests and run counts: as scipy's, as the tables', and right as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from rm_server.scoring.comparison.experiment import (
    ALPHA,
    compare,
    holm,
    ratio_mismatch,
    runs_needed,
    summarise,
)


@pytest.mark.parametrize(("num", "base_num", "scale"), [(2, 2, 1.0), (3, 9, 5.0), (20, 12, 0.01), (400, 300, 1e6)])
def test_welch_is_scipys(num: int, base_num: int, scale: float) -> None:
    rng = np.random.default_rng(num)
    values, base = rng.normal(1.0, scale, num), rng.normal(0.0, 1.0, base_num)
    found = compare(values.tolist(), base.tolist())
    expected = stats.ttest_ind(values, base, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.degrees_of_freedom == pytest.approx(expected.df, rel=1e-9)
    assert found.interval == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_a_mean_has_students_interval() -> None:
    values = [0.61, 0.55, 0.58, 0.66]
    found = summarise(values)
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.num_runs, found.mean, found.std) == (4, pytest.approx(0.6), pytest.approx(np.std(values, ddof=1)))
    assert found.interval == pytest.approx(expected, rel=1e-12)


def test_hedges_g_is_the_difference_in_pooled_deviations_corrected() -> None:
    found = compare([3.0, 5.0, 7.0], [1.0, 2.0, 3.0])  # variances 4 and 1, pooled 2.5, 4 degrees of freedom
    assert found.effect_size == pytest.approx(3 / math.sqrt(2.5) * (1 - 3 / 15))


def test_without_spread_there_is_a_difference_and_no_judgement() -> None:
    for values, base in (([0.7], [0.5, 0.6]), ([0.7, 0.6], [0.5]), ([0.1] * 3, [0.3] * 3)):
        found = compare(values, base)
        assert found.difference == pytest.approx(np.mean(values) - np.mean(base))
        assert (found.interval, found.p_value, found.effect_size, found.anytime_interval) == (None,) * 4
    assert summarise([0.7]).std is None
    assert (summarise([0.1] * 3).std, summarise([0.1] * 3).interval) == (0.0, None)  # 0.1 is no round number


def test_one_arm_without_spread_is_judged_by_the_others() -> None:
    base = [0.1, 0.2, 0.3, 0.2]
    found = compare([1.0, 1.0, 1.0], base)
    error = np.std(base, ddof=1) * math.sqrt(1 / 3 + 1 / 4)
    assert found.p_value == pytest.approx(2 * stats.t.sf(0.8 / error, 3), rel=1e-9)
    assert found.degrees_of_freedom == pytest.approx(3)
    assert compare(base, [1.0, 1.0, 1.0]).p_value == pytest.approx(found.p_value)


def test_runs_that_reach_a_target_nine_times_in_ten_in_both_arms_are_hardly_ever_told_apart() -> None:
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(300):
        values, base = rng.random(10) < 0.9, rng.random(90) < 0.9  # a third of such arms of ten have all runs alike
        p_value = compare(values.astype(float).tolist(), base.astype(float).tolist()).p_value
        alarms += p_value is not None and p_value < ALPHA
    assert alarms / 300 <= ALPHA


def test_holm_corrects_the_smallest_most() -> None:
    # By hand: sorted .01, .02, .03, .04 become .04, .06, .06, .06.
    assert holm([0.04, 0.01, None, 0.03, 0.02]) == [
        pytest.approx(0.06),
        pytest.approx(0.04),
        None,
        pytest.approx(0.06),
        pytest.approx(0.06),
    ]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("effect", "expected"), [(0.2, 393), (0.5, 64), (0.8, 26), (1.0, 17), (1.2, 12)])
def test_runs_needed_as_in_cohens_table(effect: float, expected: int) -> None:
    # Cohen 1988, table 2.4.1: two-sided 5 %, power 80 %; his numbers are approximations.
    found = runs_needed(1.0, 1.0, -effect)
    assert found is not None
    assert abs(found - expected) <= 1


@pytest.mark.parametrize(("std", "base_std", "difference", "alpha"), [(1, 2, 0.7, 0.05), (0.03, 0, 0.02, 0.0125)])
def test_runs_needed_is_the_least_with_that_power(std: float, base_std: float, difference: float, alpha: float) -> None:
    found = runs_needed(std, base_std, difference, alpha)
    assert found is not None

    def power(num: int) -> float:
        variance, other = std**2 / num, base_std**2 / num
        freedom = (variance + other) ** 2 * (num - 1) / (variance**2 + other**2)
        shift = difference / math.sqrt(variance + other)
        return float(stats.nct.sf(stats.t.ppf(1 - alpha / 2, freedom), freedom, shift))

    assert power(found) >= 0.8 > power(found - 1)


def test_runs_needed_begins_its_search_low_enough() -> None:
    for difference in np.linspace(0.3, 0.5, 60).tolist():
        found = runs_needed(1.0, 1.0, difference)
        assert found is not None
        freedom, shift = 2 * found - 4, difference / math.sqrt(2 / (found - 1))
        assert stats.nct.sf(stats.t.ppf(0.975, freedom), freedom, shift) < 0.8  # one run fewer is too few


def test_runs_needed_has_an_end() -> None:
    assert runs_needed(1.0, 1.0, 1e-6) is None
    assert runs_needed(1.0, 1.0, 0.0) is None
    assert runs_needed(0.0, 0.0, 1.0) is None
    assert runs_needed(1e-9, 1e-9, 1.0) == 2
    assert 600_000 < (runs_needed(1.0, 1.0, 0.005) or 0) < 700_000


def test_ratio_mismatch_is_scipys_chi_square() -> None:
    observed, expected = [40, 75, 85], [60.0, 70.0, 70.0]
    assert ratio_mismatch(observed, expected) == pytest.approx(stats.chisquare(observed, expected).pvalue, rel=1e-9)
    assert ratio_mismatch([10, 0], [6.0, 4.0]) is None  # too few to say
    assert ratio_mismatch([10], [10.0]) is None
    # A closed arm, which gets no runs, leaves the comparison of the others as it is.
    assert ratio_mismatch([40, 0, 80], [60.0, 0.0, 60.0]) == ratio_mismatch([40, 80], [60.0, 60.0])
    assert ratio_mismatch([40, 0], [40.0, 0.0]) is None


def test_in_simulated_experiments_without_a_difference_one_in_twenty_is_found() -> None:
    rng = np.random.default_rng(7)
    found = [
        compare(rng.normal(0.5, 0.02, 6).tolist(), rng.normal(0.5, 0.04, 9).tolist()) for _ in range(2000)
    ]  # unequal numbers and spreads
    share = np.mean([each.p_value is not None and each.p_value < ALPHA for each in found])
    covered = np.mean([each.interval is not None and each.interval[0] < 0 < each.interval[1] for each in found])
    assert share == pytest.approx(0.05, abs=0.015)
    assert covered == pytest.approx(1 - share)
    # Three at once, corrected: one false finding among them as often.
    p_values = np.array([each.p_value for each in found[:1998]]).reshape(-1, 3)
    any_found = np.mean([min(p for p in holm(row.tolist()) if p is not None) < ALPHA for row in p_values])
    assert any_found < 0.08


def test_with_as_many_runs_as_needed_four_in_five_differences_are_found() -> None:
    num = runs_needed(0.03, 0.03, 0.04)
    assert num is not None
    rng = np.random.default_rng(3)
    p_values = [
        compare(rng.normal(0.54, 0.03, num).tolist(), rng.normal(0.5, 0.03, num).tolist()).p_value for _ in range(1000)
    ]
    assert np.mean([p_value is not None and p_value < ALPHA for p_value in p_values]) == pytest.approx(0.82, abs=0.04)


def test_looking_after_every_run_deceives_and_the_anytime_interval_does_not() -> None:
    rng = np.random.default_rng(11)
    deceived = deceived_anytime = 0
    for _ in range(400):
        values, base = rng.normal(size=40).tolist(), rng.normal(size=40).tolist()
        looks = [compare(values[:num], base[:num]) for num in range(2, 41)]
        deceived += any(look.p_value is not None and look.p_value < ALPHA for look in looks)
        deceived_anytime += any(
            look.anytime_interval is not None and not look.anytime_interval[0] < 0 < look.anytime_interval[1]
            for look in looks
        )
    assert deceived / 400 > 0.2
    assert deceived_anytime / 400 < 0.06


def test_looking_after_every_run_does_not_deceive_where_an_arm_gets_one_run_in_ten() -> None:
    rng = np.random.default_rng(12)
    deceived = 0
    for _ in range(400):
        base = rng.normal(size=108)
        values = rng.normal(size=12)
        looks = [compare(values[:num].tolist(), base[: 9 * num].tolist()) for num in range(2, 13)]
        deceived += any(
            look.anytime_interval is not None and not look.anytime_interval[0] < 0 < look.anytime_interval[1]
            for look in looks
        )
    assert deceived / 400 < 0.05
