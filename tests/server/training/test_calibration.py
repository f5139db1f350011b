"""Gain and bias."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest

from rm_server.errors import InvalidRequest
from rm_server.training.calibration import Calibration, CannotCalibrate, match_moments, standardise
from rm_server.training.statistics import FloatArray

SCORES = np.array([-3.0, 0.5, 2.0, 7.5, 1.0])


def applied(calibration: Calibration) -> FloatArray:
    return calibration.gain * SCORES + calibration.bias


def test_standardised_scores_have_mean_0_and_standard_deviation_1() -> None:
    scores = applied(standardise(SCORES, "reference"))
    assert scores.mean() == pytest.approx(0, abs=1e-12)
    assert scores.std() == pytest.approx(1)


def test_matched_moments_find_the_scale_that_is_there() -> None:
    found = match_moments(SCORES, 2 * SCORES - 5, "v1")
    assert (found.gain, found.bias) == (pytest.approx(2), pytest.approx(-5))


def test_matched_moments_keep_the_spread_where_least_squares_shrinks_it() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=500)
    targets = 3 * scores + rng.normal(0, 3, size=500)
    matched = match_moments(scores, targets, "v1")
    assert (matched.gain * scores + matched.bias).std() == pytest.approx(targets.std())
    assert np.polyval(np.polyfit(scores, targets, 1), scores).std() < 0.8 * targets.std()


@pytest.mark.parametrize(
    ("scores", "complaint"),
    [
        (np.array([1.0]), "At least two finite scores"),
        (np.array([]), "At least two finite scores"),
        (np.array([1.0, np.nan]), "At least two finite scores are needed; 1 came"),
        (np.full(5, 0.1), "All 5 scores are 0.1"),
    ],
)
def test_scores_without_a_scale_are_refused(scores: FloatArray, complaint: str) -> None:
    with pytest.raises(CannotCalibrate, match=complaint):
        standardise(scores, "reference")


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(CannotCalibrate, match="5 scores and 2 targets"):
        match_moments(SCORES, SCORES[:2], "v1")
    assert issubclass(CannotCalibrate, InvalidRequest)


def test_the_digest_covers_every_field() -> None:
    calibration = Calibration(2.0, -0.5, "standardise", 5, "v1 on 'reference'")
    text = '{"bias":-0.5,"gain":2.0,"method":"standardise","num_texts":5,"source":"v1 on \'reference\'"}'
    assert calibration.digest == hashlib.sha256(text.encode()).hexdigest()
    changes = {"gain": 2.5, "bias": 0.0, "method": "match_moments", "num_texts": 6, "source": "v2"}
    others = {dataclasses.replace(calibration, **{name: value}).digest for name, value in changes.items()}  # type: ignore[arg-type]
    assert len(others | {calibration.digest}) == len(changes) + 1
