"""A shadow arrives on the scale of the version beside which it scored, or is refused with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from rm_server.errors import VersionNotFound
from rm_server.registry.catalog import Catalog
from rm_server.registry.home import open_home
from rm_server.registry.records import CalibrationRecord
from rm_server.registry.shadows import ShadowPair, add_pairs
from rm_server.training.calibration import CannotCalibrate
from rm_server.training.shadow_calibration import calibrate_from_shadow

SCALE = CalibrationRecord("a" * 64, 2.0, -1.0)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    """Model m, with version 1 on its scale and version 2 that is not."""
    catalog, _ = open_home(tmp_path / "home")
    for number in (1, 2):
        catalog.register("m", f"{number:064x}", "rules", 0, "me")
    catalog.set_calibration("m", 1, SCALE, "me")
    yield catalog
    catalog.close()


def compare(catalog: Catalog, num: int, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The shadow gives three times as much and ten more."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=num)
    shadow_scores = 3 * scores + 10 + noise * rng.normal(size=num)
    time = datetime(2026, 1, 1, tzinfo=UTC)
    add_pairs(
        catalog,
        [
            ShadowPair("m", 2, 1, time, "r", str(place), score, shadow_score)
            for place, (score, shadow_score) in enumerate(zip(scores.tolist(), shadow_scores.tolist(), strict=True))
        ],
        10_000,
    )
    return scores, shadow_scores


def test_mean_and_spread_become_those_of_the_other_on_the_common_scale(catalog: Catalog) -> None:
    scores, shadow_scores = compare(catalog, 500, noise=1.0)
    calibration = calibrate_from_shadow(catalog, "m", 2, 1, "me", "it looks good")
    arrived = calibration.gain * shadow_scores + calibration.bias
    assert arrived.mean() == pytest.approx((2 * scores - 1).mean())
    assert arrived.std() == pytest.approx((2 * scores - 1).std())
    filed = catalog.snapshot().versions["m", 2].calibration
    assert filed == CalibrationRecord(calibration.digest, calibration.gain, calibration.bias)
    assert SCALE.digest in calibration.source
    assert catalog.history("m")[0].comment == "it looks good"


def test_the_digest_is_of_the_pairs(catalog: Catalog) -> None:
    compare(catalog, 200)
    first = calibrate_from_shadow(catalog, "m", 2, 1, "me")
    assert calibrate_from_shadow(catalog, "m", 2, 1, "me").digest == first.digest
    compare(catalog, 1)
    assert calibrate_from_shadow(catalog, "m", 2, 1, "me").digest != first.digest


@pytest.mark.parametrize(("num", "noise", "reason"), [(199, 0.0, "199 pairs"), (400, 60.0, "correlate by")])
def test_too_few_pairs_and_scores_that_hardly_correlate_are_refused(
    catalog: Catalog, num: int, noise: float, reason: str
) -> None:
    compare(catalog, num, noise)
    with pytest.raises(CannotCalibrate, match=reason):
        calibrate_from_shadow(catalog, "m", 2, 1, "me")
    assert catalog.snapshot().versions["m", 2].calibration is None


def test_a_version_without_calibration_gives_its_own_scale(catalog: Catalog) -> None:
    catalog.register("m", f"{3:064x}", "rules", 0, "me")
    time = datetime(2026, 1, 1, tzinfo=UTC)
    add_pairs(catalog, [ShadowPair("m", 2, 3, time, "", "g", float(n), 2.0 * n + 1) for n in range(200)], 10_000)
    calibration = calibrate_from_shadow(catalog, "m", 2, 3, "me")
    assert (calibration.gain, calibration.bias) == (pytest.approx(0.5), pytest.approx(-0.5))
    with pytest.raises(VersionNotFound):
        calibrate_from_shadow(catalog, "m", 2, 9, "me")
