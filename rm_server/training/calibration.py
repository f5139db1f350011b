"""Gain and bias that put a version's raw scores on a common scale: score = gain * raw + bias. Pure."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from rm_server.errors import InvalidRequest
from rm_server.training.statistics import FloatArray

Method: TypeAlias = Literal["standardise", "match_moments"]


class CannotCalibrate(InvalidRequest):
    """The scores do not determine a gain: too few, constant, or not finite."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """``source`` says what the two numbers came from, for example the reference texts and the version matched."""

    gain: float
    bias: float
    method: Method
    num_texts: int
    source: str

    @property
    def digest(self) -> str:
        """SHA-256 (lower-case hex) of the fields as compact JSON with sorted keys; floats in their shortest form."""
        content = {
            "bias": self.bias,
            "gain": self.gain,
            "method": self.method,
            "num_texts": self.num_texts,
            "source": self.source,
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def standardise(scores: FloatArray, source: str) -> Calibration:
    """Mean 0 and standard deviation 1 on the reference texts' scores, shape (num_texts,).

    Raises CannotCalibrate.
    """
    mean, std = _moments(scores)
    return Calibration(1 / std, -mean / std, "standardise", len(scores), source)


def match_moments(scores: FloatArray, targets: FloatArray, source: str) -> Calibration:
    """The mean and standard deviation of another version's scores (on its common scale) of the same texts.

    Unlike least squares it does not shrink the spread where the versions disagree. Raises CannotCalibrate.
    """
    _check_paired(scores, targets)
    (mean, std), (target_mean, target_std) = _moments(scores), _moments(targets)
    gain = target_std / std
    return Calibration(gain, target_mean - gain * mean, "match_moments", len(scores), source)


def _check_paired(scores: FloatArray, targets: FloatArray) -> None:
    if scores.shape != targets.shape:
        raise CannotCalibrate(f"{len(scores)} scores and {len(targets)} targets; one for each text is needed.")


def _moments(scores: FloatArray) -> tuple[float, float]:
    if len(scores) < 2 or not np.isfinite(scores).all():
        raise CannotCalibrate(f"At least two finite scores are needed; {int(np.isfinite(scores).sum())} came.")
    mean, std = float(scores.mean()), float(scores.std())
    if not std > 1e-12 * max(1.0, abs(mean)) or not math.isfinite(std):
        raise CannotCalibrate(f"All {len(scores)} scores are {mean:.6g}; a scale needs scores that differ.")
    return mean, std
