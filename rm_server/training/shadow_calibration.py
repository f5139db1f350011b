"""A calibration from live scores: a shadow on the scale of the version whose callers' completions it scored, too."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from rm_server.registry.catalog import Catalog
from rm_server.registry.records import CalibrationRecord, VersionRecord
from rm_server.registry.shadows import ShadowPair, pairs_of
from rm_server.training.calibration import Calibration, CannotCalibrate, match_moments
from rm_server.training.statistics import FloatArray, pearson

MIN_PAIRS = 200
MIN_PEARSON = 0.5
"""Below it the two measure different things, and a common scale would only look like one."""


def calibrate_from_shadow(
    catalog: Catalog, model: str, version: int, against: int, actor: str, comment: str = ""
) -> Calibration:
    """Files the calibration by which a shadow arrives on the scale of ``against``; see `calibration_of_pairs`.

    Raises ModelNotFound, VersionNotFound, CannotCalibrate.
    """
    pairs, _ = pairs_of(catalog, model, version, against)
    calibration = calibration_of_pairs(pairs, catalog.snapshot().versions[model, against])
    filed = CalibrationRecord(calibration.digest, calibration.gain, calibration.bias)
    catalog.set_calibration(model, version, filed, actor, comment or calibration.source)
    return calibration


def calibration_of_pairs(pairs: Sequence[ShadowPair], against: VersionRecord) -> Calibration:
    """Mean and standard deviation of the other version's scores, as `register --match` has it.

    Those are its calibrated scores, or its raw ones where it has no calibration.
    Raises CannotCalibrate for too few pairs, scores that never differ, or hardly rise together.
    """
    if len(pairs) < MIN_PAIRS:
        raise CannotCalibrate(
            f"{len(pairs)} pairs with {against.model}@{against.version} are there; at least {MIN_PAIRS} are needed. "
            "Let the version shadow for longer, or a larger share."
        )
    scores = np.array([pair.score for pair in pairs], np.float64)
    shadow_scores = np.array([pair.shadow_score for pair in pairs], np.float64)
    source = f"live scores beside {against.model}@{against.version}, SHA-256 {_digest(scores, shadow_scores)}"
    targets = scores
    if against.calibration is not None:
        targets = against.calibration.apply(scores)
        source += f", calibration {against.calibration.digest}"
    calibration = match_moments(shadow_scores, targets, source)
    correlation = pearson(shadow_scores, scores)
    if not correlation >= MIN_PEARSON:
        raise CannotCalibrate(
            f"The two scores correlate by {correlation:.3f}; at least {MIN_PEARSON} is needed, for versions that "
            "measure different things have no common scale."
        )
    return calibration


def _digest(scores: FloatArray, shadow_scores: FloatArray) -> str:
    """Over the pairs in order, as little-endian doubles: score, shadow score."""
    return hashlib.sha256(np.stack([scores, shadow_scores], axis=1).astype("<f8").tobytes()).hexdigest()
