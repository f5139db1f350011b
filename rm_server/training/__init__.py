"""How a version is made: preferences, trainer, evaluation, calibration."""
