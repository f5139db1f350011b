"""The figures of an evaluation, on scores whose worth is known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest

from rm_server.training.evaluation import PairScores, RatedScores, agreement, distributions, evaluate, reliability
from rm_server.training.statistics import FloatArray

NUM_PROMPTS, PAIRS_PER_PROMPT = 40, 15
NUM_PAIRS = NUM_PROMPTS * PAIRS_PER_PROMPT


def people(seed: int = 0) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Quality and length of the chosen and the rejected: people look at quality, and a little at length."""
    rng = np.random.default_rng(seed)
    quality = rng.normal(size=(NUM_PAIRS, 2))
    length = np.exp(rng.normal(5, 0.5, size=(NUM_PAIRS, 2))).round()
    appeal = 1.5 * (quality[:, 0] - quality[:, 1]) + 1.5 * np.log(length[:, 0] / length[:, 1])
    first = rng.random(NUM_PAIRS) < 1 / (1 + np.exp(-appeal))
    order = np.where(first[:, None], [0, 1], [1, 0])
    quality, length = np.take_along_axis(quality, order, 1), np.take_along_axis(length, order, 1)
    return quality[:, 0], quality[:, 1], length[:, 0], length[:, 1]


def pairs_of(chosen: FloatArray, rejected: FloatArray, seed: int = 0) -> PairScores:
    *_, chosen_lengths, rejected_lengths = people(seed)
    clusters = np.repeat([f"p{i}" for i in range(NUM_PROMPTS)], PAIRS_PER_PROMPT)
    return PairScores(chosen, rejected, chosen_lengths, rejected_lengths, clusters)


def test_an_oracle_is_always_right() -> None:
    rng = np.random.default_rng(0)
    rejected = rng.normal(size=NUM_PAIRS)
    figures = evaluate(pairs_of(rejected + rng.uniform(0.1, 1, NUM_PAIRS), rejected))
    assert figures.accuracy == figures.length_matched_accuracy == 1
    assert figures.accuracy_interval is not None
    assert figures.accuracy_interval[0] > 0.8
    assert figures.beyond_length.is_separated
    assert figures.beyond_length.coefficient is None
    assert figures.beyond_length.p_value is not None
    assert figures.beyond_length.p_value < 1e-6


def test_a_score_that_is_length_says_nothing_beyond_length() -> None:
    _, _, chosen, rejected = people()
    noise = np.random.default_rng(5).normal(0, 0.05, size=(2, NUM_PAIRS))
    figures = evaluate(pairs_of(np.log(chosen) + noise[0], np.log(rejected) + noise[1]))
    assert figures.accuracy == pytest.approx(figures.longer_wins_accuracy, abs=0.03)
    assert figures.accuracy > 0.6
    assert figures.length_correlation is not None
    assert figures.length_correlation > 0.9
    interval = figures.beyond_length.interval
    assert interval is not None
    assert interval[0] < 0 < interval[1]


@pytest.mark.parametrize("score", [np.sqrt, np.negative])
def test_no_function_of_length_says_anything_beyond_a_curve_of_length(
    score: Callable[[FloatArray], FloatArray],
) -> None:
    rng = np.random.default_rng(2)
    found = []
    for _ in range(20):
        first, second = np.exp(rng.normal(5, 0.7, size=(2, 500))).round()
        chosen = np.where(rng.random(500) < 1 / (1 + np.exp((second - first) / 150)), first, second)  # not by its log
        rejected = first + second - chosen
        beyond = evaluate(PairScores(score(chosen), score(rejected), chosen, rejected, np.arange(500))).beyond_length
        found.append([p is not None and p < 0.05 for p in (beyond.p_value, beyond.curved_p_value)])
    of_logarithm, of_curve = np.sum(found, axis=0)
    assert of_logarithm >= 15, "or there would be nothing to caution against"
    assert of_curve <= 5


@pytest.mark.parametrize("num_lengths", [1, 2, 3])
def test_few_different_lengths_are_no_hindrance(num_lengths: int) -> None:
    rng = np.random.default_rng(2)
    lengths = rng.integers(1, num_lengths + 1, size=(2, 400)).astype(np.float64)
    beyond = evaluate(PairScores(rng.normal(1, 1, 400), rng.normal(0, 1, 400), *lengths, np.arange(400))).beyond_length
    assert beyond.curved_p_value is not None
    assert beyond.curved_p_value < 1e-6


def test_a_score_that_is_quality_says_much_beyond_length() -> None:
    chosen, rejected, _, _ = people()
    figures = evaluate(pairs_of(chosen, rejected))
    beyond = figures.beyond_length
    assert beyond.interval is not None
    assert beyond.interval[0] > 0.5
    assert beyond.coefficient == pytest.approx(1.5 * beyond.score_unit, rel=0.25)  # the truth, per standard deviation
    assert beyond.length_coefficient == pytest.approx(1.5 * beyond.log_length_unit, rel=0.25)
    assert figures.gain_over_longer_wins > 0
    assert figures.length_matched_accuracy is not None
    assert figures.length_matched_accuracy > 0.65


def test_the_coefficient_does_not_depend_on_the_scores_scale() -> None:
    chosen, rejected, _, _ = people()
    plain, scaled = evaluate(pairs_of(chosen, rejected)), evaluate(pairs_of(7 * chosen + 3, 7 * rejected + 3))
    assert scaled.beyond_length.coefficient == pytest.approx(plain.beyond_length.coefficient, abs=1e-6)
    assert scaled.beyond_length.score_unit == pytest.approx(7 * plain.beyond_length.score_unit)


def test_copied_prompts_make_no_narrower_interval_when_they_stay_one_cluster() -> None:
    chosen, rejected, _, _ = people()
    once = pairs_of(chosen, rejected)
    twice = dataclasses.replace(
        once, **{f.name: np.tile(getattr(once, f.name), 2) for f in dataclasses.fields(once) if f.name != "subsets"}
    )
    pretended = dataclasses.replace(twice, clusters=np.arange(2 * NUM_PAIRS))

    def width(pairs: PairScores) -> float:
        interval = evaluate(pairs).beyond_length.interval
        assert interval is not None
        return interval[1] - interval[0]

    assert width(twice) == pytest.approx(width(once), rel=1e-6)
    assert width(pretended) < 0.85 * width(twice)


def test_ties_count_half_everywhere() -> None:
    zeros = np.zeros(NUM_PAIRS)
    figures = evaluate(pairs_of(zeros, zeros))
    assert figures.accuracy == 0.5
    assert figures.beyond_length.coefficient is None
    assert not figures.beyond_length.is_separated
    assert figures.length_correlation is None
    assert figures.reliability.log_loss == pytest.approx(math.log(2))


def test_length_matched_pairs_are_within_a_quarter() -> None:
    pairs = PairScores(
        chosen=np.array([1.0, 0, 1, 1, 0]),
        rejected=np.array([0.0, 1, 0, 0, 1]),
        chosen_lengths=np.array([125.0, 100, 126, 100, 300]),
        rejected_lengths=np.array([100.0, 125, 100, 126, 100]),
        clusters=np.arange(5),
    )
    figures = evaluate(pairs)
    assert (figures.num_length_matched, figures.length_matched_accuracy) == (2, 0.5)
    assert figures.longer_wins_accuracy == 0.6
    assert figures.accuracy_longer_chosen is not None
    assert figures.accuracy_shorter_chosen is not None
    assert (figures.accuracy_longer_chosen.count, figures.accuracy_shorter_chosen.count) == (3, 2)
    bands = [(band.low, band.high, band.accuracy.count) for band in figures.length_bands]
    assert bands == [(0.5, 0.8, 1), (0.8, 1.25, 2), (1.25, 2.0, 1), (2.0, None, 1)]  # 100/126, both borders, …


def test_what_has_no_pairs_is_none_not_a_number() -> None:
    pairs = PairScores(
        np.array([1.0, 2]), np.array([0.0, 3]), np.array([10.0, 20]), np.array([1.0, 2]), np.array(["a", "b"])
    )
    figures = evaluate(pairs)
    assert figures.length_matched_accuracy is None
    assert figures.accuracy_shorter_chosen is None
    assert figures.ratings is None


def test_parts_of_the_data_are_shown_by_name() -> None:
    chosen, rejected, _, _ = people()
    subsets = ["easy", "hard", ""] * (NUM_PAIRS // 3)
    figures = evaluate(dataclasses.replace(pairs_of(chosen, rejected), subsets=subsets))
    assert {name: estimate.count for name, estimate in figures.subsets.items()} == {"easy": 200, "hard": 200}


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_scores_that_are_none_are_refused(broken: float) -> None:
    scores = np.zeros(NUM_PAIRS)
    scores[3] = broken
    with pytest.raises(ValueError, match="finite"):
        evaluate(pairs_of(scores, np.zeros(NUM_PAIRS)))


def test_no_pairs_are_refused() -> None:
    none = np.zeros(0)
    with pytest.raises(ValueError, match="no pairs"):
        evaluate(PairScores(none, none, none, none, none))


def test_true_probabilities_are_reliable_and_exaggerated_ones_are_not() -> None:
    rng = np.random.default_rng(2)
    truth = np.abs(rng.normal(0, 1.5, 20_000))
    margins = np.where(rng.random(20_000) < 1 / (1 + np.exp(-truth)), truth, -truth)
    clusters = np.arange(20_000) % 500
    honest, boastful = reliability(margins, clusters), reliability(3 * margins, clusters)
    assert honest.expected_calibration_error < 0.015
    assert honest.slope == pytest.approx(1, abs=0.05)
    assert boastful.expected_calibration_error > 0.1
    assert boastful.slope == pytest.approx(1 / 3, abs=0.02)
    assert boastful.log_loss > honest.log_loss
    assert sum(one.count for one in honest.bins) == 20_000


def test_brier_score_and_log_loss_are_the_closed_forms() -> None:
    margins = np.array([math.log(3), -math.log(3)])  # p = 3/4 and 1/4
    figures = reliability(margins, np.arange(2))
    assert figures.brier_score == pytest.approx((0.25**2 + 0.75**2) / 2)
    assert figures.log_loss == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)
    (one,) = figures.bins
    assert (one.predicted, one.observed, one.count) == (pytest.approx(0.75), 0.5, 2)


def test_distributions_count_every_score_over_common_bars() -> None:
    both = distributions(np.array([1.0, 2, 3]), np.array([-1.0, 0]))
    assert (sum(both.chosen.counts), sum(both.rejected.counts)) == (3, 2)
    assert (both.edges[0], both.edges[-1]) == (-1, 3)
    assert (both.chosen.mean, both.chosen.quantiles[2]) == (2, 2)


def test_agreement_within_prompts_does_not_mind_that_prompts_differ() -> None:
    rng = np.random.default_rng(3)
    clusters = np.repeat(np.arange(30), 8)
    within = rng.normal(size=240)
    offset = np.repeat(rng.normal(0, 20, size=30), 8)  # a reward model may place each prompt anywhere
    found = agreement(RatedScores(within + offset, within + rng.normal(0, 0.3, 240), clusters))
    assert found.within_prompts is not None
    assert found.within_prompts > 0.85
    assert found.spearman is not None
    assert found.spearman < 0.4
    for value, interval in (
        (found.pearson, found.pearson_interval),
        (found.spearman, found.spearman_interval),
        (found.within_prompts, found.within_prompts_interval),
    ):
        assert value is not None
        assert interval is not None
        assert interval[0] < value < interval[1]


def test_the_interval_of_a_correlation_of_few_prompts_stays_within_its_bounds() -> None:
    scores = np.tile(np.arange(4.0), 3)
    ratings = np.array([0, 1, 2, 3, 0, 1, 2, 3, 3, 0, 1, 2], np.float64)  # as the scores in two prompts of three
    found = agreement(RatedScores(scores, ratings, np.repeat(np.arange(3), 4)))
    assert found.within_prompts == pytest.approx((1 + 1 - 0.2) / 3)
    assert found.within_prompts_interval == (-1.0, 1.0)


def test_constant_scores_have_no_correlation() -> None:
    found = agreement(RatedScores(np.zeros(12), np.arange(12.0), np.repeat(np.arange(3), 4)))
    assert (found.pearson, found.spearman, found.within_prompts, found.num_prompts) == (None, None, None, 0)
