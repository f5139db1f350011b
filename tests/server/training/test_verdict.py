"""Words for figures: each case reads like its sentence."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rm_server.training.evaluation import BeyondLength, Evaluation, PairScores, Reliability, evaluate, reliability
from rm_server.training.statistics import Estimate
from rm_server.training.verdict import Circumstances, judge


def figures(**changes: object) -> Evaluation:
    """Good figures with nothing to caution against, and ``changes``."""
    rng = np.random.default_rng(0)
    margins = rng.normal(1, 2, 800)
    lengths = rng.uniform(90, 110, size=(2, 800))
    plain = evaluate(PairScores(margins, np.zeros(800), *lengths, np.repeat(np.arange(80), 10)))
    calm = dataclasses.replace(plain.reliability, expected_calibration_error=0.02)
    return dataclasses.replace(plain, **{"reliability": calm, **changes})  # type: ignore[arg-type]


def beyond(low: float, high: float, t: float = 0.0, p_value: float = 1.0) -> BeyondLength:
    return BeyondLength((low + high) / 2, (low, high), 0.1, (-0.1, 0.3), False, t, p_value, 1e-6, 1.0, 0.4)


def separated(t: float | None, p_value: float | None) -> BeyondLength:
    return BeyondLength(None, None, None, None, True, t, p_value, 1e-6, 1.0, 0.4)


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({}, "good", "not only because of length"),
        ({"beyond_length": beyond(-0.1, 0.4)}, "unclear", "perhaps only because they follow length"),
        ({"beyond_length": beyond(-0.4, -0.1)}, "bad", "go against"),
        ({"accuracy_interval": (0.48, 0.6)}, "unclear", "better than chance"),
        ({"accuracy_interval": (0.3, 0.45)}, "bad", "go against"),
        ({"accuracy_interval": None}, "unclear", "too little data"),
        ({"beyond_length": beyond(-4.0, 120.0, t=9.0, p_value=1e-6)}, "good", "not only because of length"),
        ({"beyond_length": separated(9.0, 1e-6)}, "good", "not only because of length"),
        ({"beyond_length": separated(-9.0, 1e-6)}, "bad", "go against"),
        ({"beyond_length": separated(1.0, 0.3)}, "unclear", "perhaps only because they follow length"),
        ({"beyond_length": separated(None, None)}, "unclear", "perhaps only because they follow length"),
    ],
)
def test_the_headline_says_what_the_intervals_allow(changes: dict[str, object], level: str, words: str) -> None:
    verdict = judge(figures(**changes), Circumstances())
    assert verdict.level == level
    assert words in verdict.headline


@pytest.mark.parametrize(
    ("coefficient", "words"),
    [
        (beyond(0.1, 0.4), "people tend to choose the one with the higher score (0.25 [0.10, 0.40])"),
        (beyond(-0.1, 0.4), "cannot be told"),
        (beyond(-0.4, -0.1), "the one with the lower score"),
    ],
)
def test_the_text_says_what_the_score_knows_beyond_length(coefficient: BeyondLength, words: str) -> None:
    assert words in judge(figures(beyond_length=coefficient), Circumstances()).text


def test_good_figures_need_no_caution() -> None:
    assert judge(figures(), Circumstances()).cautions == ()


BOASTFUL = Reliability((), 0.2, 0.3, 0.8, 0.4, (0.3, 0.5))


@pytest.mark.parametrize(
    ("changes", "circumstances", "words"),
    [
        ({"gain_over_longer_wins": 0.01, "gain_interval": (-0.02, 0.04)}, Circumstances(), "+1.0 points [-2.0, +4.0]"),
        (
            {"gain_over_longer_wins": -0.1, "gain_interval": (-0.15, -0.05)},
            Circumstances(),
            "-10.0 points [-15.0, -5.0]",
        ),
        (
            {"beyond_length": dataclasses.replace(beyond(0.1, 0.4), curved_p_value=0.3)},
            Circumstances(),
            "may be length all the same: where people's choice may follow any smooth curve of length, it is not shown "
            "that the score says more (p = 0.3)",
        ),
        ({"num_prompts": 12}, Circumstances(), "Only 12 prompts"),
        ({"num_length_matched": 40}, Circumstances(), "Only 40 pairs are of about equal length"),
        ({"num_length_matched": 1}, Circumstances(), "Only 1 pair is of about equal length"),
        ({}, Circumstances(num_unscored=1), "1 pair could not be scored"),
        ({"num_prompts": 1}, Circumstances(), "Only 1 prompt:"),
        ({"length_correlation": 0.7}, Circumstances(), "by writing longer texts"),
        ({"length_correlation": -0.7}, Circumstances(), "by writing shorter texts"),
        ({"accuracy_shorter_chosen": Estimate(0.2, (0.1, 0.3), 90)}, Circumstances(), "agree in 20.0 % only"),
        ({"reliability": BOASTFUL}, Circumstances(), "too sure of themselves"),
        (
            {"reliability": dataclasses.replace(BOASTFUL, slope=2.0, slope_interval=(1.5, 2.5))},
            Circumstances(),
            "too careful",
        ),
        ({}, Circumstances(num_unscored=3), "3 pairs could not be scored"),
        ({}, Circumstances(truncated_share=0.6), "60.0 % of the texts are longer"),
        ({}, Circumstances(num_trained_prompts=5), "5 of these prompts"),
    ],
)
def test_each_circumstance_has_its_caution(
    changes: dict[str, object], circumstances: Circumstances, words: str
) -> None:
    cautions = judge(figures(**changes), circumstances).cautions
    assert len(cautions) == 1
    assert words in cautions[0]


def test_probabilities_that_hold_are_hardly_ever_called_wrong() -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(100):
        differences = rng.normal(0, 1, 50)
        agrees = rng.random(50) < 1 / (1 + np.exp(-differences))  # as the scores say
        found = reliability(np.where(agrees, differences, -differences), np.arange(50))
        alarms += any(
            "as probabilities" in text for text in judge(figures(reliability=found), Circumstances()).cautions
        )
    assert alarms <= 10
