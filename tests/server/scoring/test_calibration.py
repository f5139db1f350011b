"""The common scale."""

from __future__ import annotations

from rm_server.registry.records import CalibrationRecord
from rm_server.scoring.calibration import calibrated


def test_gain_and_bias() -> None:
    assert calibrated(3.0, CalibrationRecord("d" * 64, gain=2.0, bias=-1.0)) == 5.0
