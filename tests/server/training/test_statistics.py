"""Clustered intervals and the logistic fit, against statsmodels, refits, and cases with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rm_server.training.statistics import (
    FloatArray,
    clustered_difference,
    clustered_mean,
    clustered_share,
    correlation_interval,
    feature_test,
    fit_choices,
    pearson,
    spearman,
    t_quantile,
)

NUM_CLUSTERS = 24


def choices() -> tuple[FloatArray, FloatArray, np.ndarray]:
    """Differences towards the chosen, who "won", and clusters: the data of the figures from statsmodels below."""
    rng = np.random.default_rng(7)
    clusters = np.repeat(np.arange(NUM_CLUSTERS), 10)
    score = rng.normal(size=240) + np.repeat(rng.normal(size=NUM_CLUSTERS), 10) * 0.5
    length = rng.normal(size=240) + 0.4 * score
    won = rng.random(240) < 1 / (1 + np.exp(-(0.8 * score + 0.3 * length)))
    return np.stack([score, length], axis=1) * np.where(won, 1, -1)[:, None], won.astype(np.float64), clusters


def test_the_fit_is_that_of_statsmodels() -> None:
    features, _, clusters = choices()
    # statsmodels 0.15.0, both orders of each pair: Logit(y, x).fit().
    assert fit_choices(features, clusters).coefficients == pytest.approx((0.69206739, 0.28010505), abs=1e-6)


def test_the_fits_intervals_are_what_leaving_out_each_cluster_changes() -> None:
    features, _, clusters = choices()
    fit = fit_choices(features, clusters)
    without = [fit_choices(features[clusters != one], clusters[clusters != one]) for one in range(NUM_CLUSTERS)]
    for column, (coefficient, interval) in enumerate(zip(fit.coefficients, fit.intervals, strict=True)):
        assert coefficient is not None
        changes = np.array([other.coefficients[column] for other in without], np.float64) - coefficient
        half = t_quantile(NUM_CLUSTERS) * np.sqrt((NUM_CLUSTERS - 1) / NUM_CLUSTERS * (changes**2).sum())
        assert interval == pytest.approx((coefficient - half, coefficient + half), abs=0.01)


def test_the_mean_is_that_of_statsmodels() -> None:
    # OLS on a constant, clustered, as above: standard error 0.03709524.
    _, won, clusters = choices()
    estimate = clustered_mean(won, clusters)
    half = t_quantile(NUM_CLUSTERS) * 0.03709524
    assert estimate.value == pytest.approx(0.45416667)
    assert estimate.interval == pytest.approx((0.45416667 - half, 0.45416667 + half), abs=1e-7)


def test_copies_of_a_pair_in_its_cluster_add_nothing() -> None:
    features, won, clusters = choices()
    copied = np.repeat(np.arange(240), 5)
    naive = np.arange(len(copied))
    for method in (
        lambda x, c: clustered_share(won[x], c).interval,
        lambda x, c: clustered_mean(won[x], c).interval,
        lambda x, c: fit_choices(features[x], c).intervals[0],
    ):
        once, again, pretended = (
            method(np.arange(240), clusters),
            method(copied, clusters[copied]),
            method(copied, naive),
        )
        assert again == pytest.approx(once, abs=1e-6)
        assert pretended[1] - pretended[0] < 0.6 * (again[1] - again[0])


def test_independent_observations_get_wilsons_interval() -> None:
    hits = np.array([1.0] * 700 + [0.0] * 300)
    estimate = clustered_share(hits, np.arange(1000))
    wilson = stats.binomtest(700, 1000).proportion_ci(0.95, method="wilson")
    assert estimate.interval == pytest.approx((wilson.low, wilson.high), abs=1e-3)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_without_exception_still_has_an_interval_inside_0_and_1(share: float) -> None:
    interval = clustered_share(np.full(40, share), np.repeat(np.arange(8), 5)).interval
    assert interval is not None
    assert 0 <= interval[0] < interval[1] <= 1
    assert interval[1] - interval[0] > 0.2  # eight prompts, not forty pairs


def test_the_clustered_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(20), 15)
    covered = 0
    for _ in range(400):
        rates = rng.beta(7, 3, size=20)  # prompts differ; the mean is 0.7
        interval = clustered_share((rng.random(300) < np.repeat(rates, 15)).astype(np.float64), clusters).interval
        assert interval is not None
        covered += interval[0] <= 0.7 <= interval[1]
    assert 0.92 <= covered / 400 <= 0.985


def test_a_prompt_with_most_of_the_pairs_does_not_make_intervals_too_small() -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(21), [40, *[1] * 20])
    shares = means = errors = 0
    for _ in range(300):
        rates = rng.beta(7 / 6, 7 / 6, size=21)  # correlation of 0.3 within a prompt, as often right as wrong
        hits = (rng.random(60) < rates[clusters]).astype(np.float64)
        share, mean = clustered_share(hits, clusters).interval, clustered_mean(hits, clusters).interval
        assert share is not None
        assert mean is not None
        shares += share[0] <= 0.5 <= share[1]
        means += mean[0] <= 0.5 <= mean[1]
        interval = fit_choices(rng.normal(size=(60, 1)) + rng.normal(size=21)[clusters][:, None], clusters).intervals[0]
        errors += interval is not None and not interval[0] <= 0 <= interval[1]
    assert shares / 300 >= 0.9
    assert means / 300 >= 0.85
    assert errors / 300 <= 0.15


def test_the_interval_of_a_difference_holds_where_few_pairs_differ() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        interval = clustered_difference(-(rng.random(100) < 0.01).astype(np.float64), np.arange(100)).interval
        assert interval is not None
        covered += interval[0] <= -0.01 <= interval[1]
    assert covered / 300 >= 0.93
    # Bonett and Price's p̃ = (n + 1) / (N + 2): here 1/102 for either side, with t for z and G/(G-1).
    half = t_quantile(102) * (2 / 102 / 101) ** 0.5
    assert clustered_difference(np.zeros(100), np.arange(100)).interval == pytest.approx((-half, half))
    always = clustered_difference(np.ones(3), np.arange(3))
    assert (always.value, always.interval) == (1.0, (pytest.approx(-0.51, abs=0.01), 1.0))


def test_one_cluster_has_no_interval() -> None:
    one = np.zeros(5, np.int64)
    values = np.array([0.0, 1, 1, 0, 1])
    assert clustered_mean(values, one).interval is None
    assert clustered_difference(values, one).interval is None
    assert clustered_share(values, one).interval is None
    assert fit_choices(values[:, None] - 0.5, one).intervals == (None,)
    assert correlation_interval(lambda kept: pearson(values[kept], -values[kept]), one) is None


def test_a_choice_that_is_always_predicted_has_no_finite_coefficient() -> None:
    clusters = np.arange(6)
    fit = fit_choices(np.array([[1.0, -1], [2, 0.5], [0.5, -2], [3, 1], [1, 1], [2, -1]]), clusters)
    assert fit.is_separated
    assert fit.coefficients == (None, None)
    nearly = fit_choices(np.array([[1.0], [2], [-0.5], [3], [1], [2]]), clusters)
    assert not nearly.is_separated
    assert nearly.coefficients[0] is not None


@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e6, 1e30])
def test_a_fit_does_not_depend_on_the_scale_of_a_feature(scale: float) -> None:
    features, _, clusters = choices()
    plain, scaled = fit_choices(features[:, :1], clusters), fit_choices(scale * features[:, :1], clusters)
    assert plain.coefficients[0] is not None
    assert scaled.coefficients[0] == pytest.approx(plain.coefficients[0] / scale)
    assert plain.intervals[0] is not None
    assert scaled.intervals[0] == pytest.approx([end / scale for end in plain.intervals[0]])


def test_what_one_feature_adds_to_itself_cannot_be_told() -> None:
    features, _, clusters = choices()
    twice = np.stack([-7 * features[:, 1], features[:, 1]], axis=1)
    fit = fit_choices(twice, clusters)
    assert (fit.coefficients, fit.intervals, fit.is_separated) == ((None, None), (None, None), False)
    assert feature_test(twice, clusters) is None


def test_the_score_test_and_the_interval_agree_where_both_hold() -> None:
    features, _, clusters = choices()
    for columns in ([0, 1], [1, 0]):
        fit, test = fit_choices(features[:, columns], clusters), feature_test(features[:, columns], clusters)
        assert test is not None
        assert fit.coefficients[0] is not None
        assert fit.intervals[0] is not None
        error = (fit.intervals[0][1] - fit.coefficients[0]) / t_quantile(NUM_CLUSTERS)
        assert test[0] == pytest.approx(fit.coefficients[0] / error, rel=0.25)
        assert test[1] == pytest.approx(2 * stats.t.sf(abs(test[0]), NUM_CLUSTERS - 1))


def test_the_score_test_errs_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    clusters = np.repeat(np.arange(20), 15)
    errors = 0
    for _ in range(400):
        length = rng.normal(size=300)
        noise = length + 0.2 * (rng.normal(size=300) + np.repeat(rng.normal(size=20), 15))  # nearly length itself
        won = rng.random(300) < 1 / (1 + np.exp(-length))
        test = feature_test(np.stack([noise, length], axis=1) * np.where(won, 1, -1)[:, None], clusters)
        assert test is not None
        errors += test[1] < 0.05
    assert 0.02 <= errors / 400 <= 0.08


def test_the_score_test_holds_where_every_choice_is_predicted() -> None:
    rng = np.random.default_rng(5)
    margins, length = rng.uniform(0.1, 1, 300), rng.normal(size=300)
    test = feature_test(np.stack([margins, length], axis=1), np.repeat(np.arange(20), 15))
    assert test is not None
    assert test[0] > 5
    assert feature_test(np.stack([length, margins], axis=1), np.repeat(np.arange(20), 15)) is None
    assert feature_test(np.zeros((4, 2)), np.arange(4)) is None
    assert feature_test(np.ones((4, 1)), np.zeros(4, np.int64)) is None


def test_a_feature_that_is_always_0_takes_no_part() -> None:
    features, _, clusters = choices()
    alone = fit_choices(features[:, :1], clusters)
    beside = fit_choices(np.stack([features[:, 0], np.zeros(240)], axis=1), clusters)
    assert beside.coefficients == (pytest.approx(alone.coefficients[0]), None)
    assert fit_choices(np.zeros((4, 2)), np.arange(4)).coefficients == (None, None)


def test_correlations_are_scipys() -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(0, 5, 50).astype(np.float64)
    y = x + rng.normal(size=50)
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert np.isnan(pearson(x, np.ones(50)))


@pytest.mark.parametrize("num_clusters", [2, 5, 30])
def test_the_interval_of_a_correlation_holds_for_few_clusters(num_clusters: int) -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(num_clusters), 6)
    covered = 0
    for _ in range(200):
        both = np.repeat(rng.normal(size=(2, num_clusters)), 6, axis=1) + rng.normal(size=(2, len(clusters)))
        x, y = both[0], 0.6 * both[0] + 0.8 * both[1]
        interval = correlation_interval(lambda kept, x=x, y=y: pearson(x[kept], y[kept]), clusters)
        assert interval is not None
        covered += interval[0] <= 0.6 <= interval[1]
    assert covered / 200 >= 0.9


def test_of_independent_pairs_a_correlation_has_fishers_interval() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=2000)
    y = 0.6 * x + 0.8 * rng.normal(size=2000)
    expected = stats.pearsonr(x, y).confidence_interval(0.95)
    interval = correlation_interval(lambda kept: pearson(x[kept], y[kept]), np.arange(2000))
    assert interval == pytest.approx((expected.low, expected.high), abs=0.01)


def test_a_correlation_that_is_perfect_or_not_defined_has_no_interval() -> None:
    x = np.arange(12.0)
    for y in (2 * x, np.ones(12)):
        assert correlation_interval(lambda kept, y=y: pearson(x[kept], y[kept]), np.arange(12)) is None
