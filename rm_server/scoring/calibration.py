"""Raw scores on the model's common scale."""

from __future__ import annotations

from rm_server.registry.records import CalibrationRecord


def calibrated(raw: float, calibration: CalibrationRecord) -> float:
    """``gain * raw + bias``. Not finite where that overflows."""
    return calibration.gain * raw + calibration.bias
