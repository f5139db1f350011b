"""What a client does when another version answers, as a table."""

from __future__ import annotations

import pytest

from ppo_client.client.errors import VersionChanged
from ppo_client.client.known_versions import KnownVersions, OnVersionChange
from ppo_client.client.scores import Calibration, Scores


def scores(version: int, calibration: str = "") -> Scores:
    map_of_scores = Calibration(calibration * 64, 2.0, 0.0) if calibration else None
    return Scores([], "m", version, f"{version}" * 64, [], [], calibration=map_of_scores)


NAMES = [
    ("stop", "m", "r", True),
    ("stop", "m", "", True),
    ("stop", "m@stable", "r", True),
    ("follow", "m", "r", False),
    ("follow", "m@stable", "", False),
    ("recalibrate", "m", "r", False),
    # A run's bare name is the run's own version; a label moves, and nobody's call belongs to no run.
    ("auto", "m", "r", True),
    ("auto", "m", "", False),
    ("auto", "m@stable", "r", False),
]
"""Setting, selector, run, and whether a name that is answered by another version stops."""

TABLE = ("on_change", "selector", "run", "stops")


@pytest.mark.parametrize(TABLE, NAMES)
def test_stops_or_follows(on_change: OnVersionChange, selector: str, run: str, stops: bool) -> None:
    known = KnownVersions(on_change)
    assert known.expected_digest(selector, run) is None
    known.answered(selector, run, scores(1))
    known.answered(selector, run, scores(1))
    assert known.expected_digest(selector, run) == ("1" * 64 if stops else None)
    if stops:
        for _ in range(2):
            with pytest.raises(VersionChanged, match=r"answered by m@2 .* before by m@1"):
                known.answered(selector, run, scores(2))
    else:
        known.answered(selector, run, scores(2))
    # Another run, another name: another matter.
    known.answered(selector, "other", scores(2))


def test_a_run_that_moved_expects_what_it_was_given() -> None:
    known = KnownVersions("stop")
    known.answered("m", "r", scores(1))
    known.given("m", "r", 2, "2" * 64)
    assert known.expected_digest("m", "r") == "2" * 64
    known.answered("m", "r", scores(2))
    with pytest.raises(VersionChanged):
        known.answered("m", "r", scores(1))


def test_a_number_is_not_a_name_that_can_change() -> None:
    known = KnownVersions("stop")
    known.answered("m@1", "r", scores(1))
    assert known.expected_digest("m@1", "r") is None
    assert KnownVersions("recalibrate").are_recalibrated
    assert not known.are_recalibrated


@pytest.mark.parametrize("model", ["m", ""])
def test_a_run_that_ended_asks_anew(model: str) -> None:
    known = KnownVersions("stop")
    for run in ("r", "other"):
        known.answered("m", run, scores(1))
    known.ended(model, "r")
    known.answered("m", "r", scores(2))
    with pytest.raises(VersionChanged):
        known.answered("m", "other", scores(2))


@pytest.mark.parametrize(TABLE, [*NAMES, ("stop", "m@1", "", True), ("auto", "m@1", "r", False)])
def test_another_calibration_moves_the_scores_as_another_version_does(
    on_change: OnVersionChange, selector: str, run: str, stops: bool, caplog: pytest.LogCaptureFixture
) -> None:
    known = KnownVersions(on_change)
    known.answered(selector, run, scores(1, "a"))
    known.answered(selector, run, scores(1))  # raw ones have none
    known.answered(selector, run, scores(1, "a"))
    assert not caplog.records
    if stops:
        for _ in range(2):
            with pytest.raises(VersionChanged, match=r"m@1 have the calibration b{12} now, before a{12}"):
                known.answered(selector, run, scores(1, "b"))
        known.given(selector, run, 1, "1" * 64)
        known.answered(selector, run, scores(1, "b"))
    else:
        known.answered(selector, run, scores(1, "b"))
        known.answered(selector, run, scores(1, "b"))
        (record,) = caplog.records
        assert "m@1 have the calibration bbbbbbbbbbbb now" in record.getMessage()


def test_each_version_has_a_calibration_of_its_own() -> None:
    known = KnownVersions("follow")
    known.answered("m@stable", "r", scores(1, "a"))
    known.answered("m@stable", "r", scores(2, "b"))
