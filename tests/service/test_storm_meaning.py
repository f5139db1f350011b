"""What the storm holds answers against: all that a selector may have meant meanwhile, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from bench.storms.callers import Reply
from bench.storms.meaning import Meaning, Timeline
from rm_server.registry.records import Arm, Split


def split(**versions: int) -> Split:
    arms = tuple(Arm(name, version, 1.0) for name, version in versions.items())
    return Split("m", arms, "salt", datetime.now(UTC))


@pytest.fixture
def meaning() -> Meaning:
    """`m@stable` is 1, from 5 s to 6 s becomes 2; a split of 3 alone from 10 s to 11 s on; `pinned` has 4 from 20 s."""
    meaning = Meaning()
    meaning.labels["m", "stable"].change(0.0, 0.0, 1)
    meaning.labels["m", "stable"].change(5.0, 6.0, 2)
    meaning.splits["m"].change(10.0, 11.0, split(a=3))
    meaning.pins["m", "pinned"].change(20.0, 21.0, 4)
    return meaning


def test_a_timeline_has_what_may_have_been_while_it_changed() -> None:
    timeline: Timeline[str] = Timeline("old")
    timeline.change(5.0, 6.0, "new")
    assert timeline.possible(1, 4.9) == {"old"}
    assert timeline.possible(1, 5.0) == timeline.possible(6.0, 7) == timeline.possible(5.2, 5.3) == {"old", "new"}
    assert timeline.possible(6.1, 7) == {"new"}
    assert timeline.last == "new"


@pytest.mark.parametrize(
    ("selector", "run", "sent", "received", "versions"),
    [
        ("m@3", "r", 0, 30, {3}),
        ("m@stable", "r", 1, 2, {1}),
        ("m@stable", "pinned", 30, 31, {2}),
        ("m@stable", "r", 4, 5, {1, 2}),
        ("m@stable", "r", 6.5, 31, {2}),
        ("m@canary", "r", 1, 2, set()),
        ("m", "", 12, 13, {2}),
        ("m", "r", 1, 2, {1}),
        ("m", "r", 9, 10, {2, 3}),
        ("m", "r", 12, 31, {3}),
        ("m", "pinned", 12, 13, {3}),
        ("m", "pinned", 19, 20.5, {3, 4}),
        ("m", "pinned", 22, 23, {4}),
    ],
)
def test_a_selector_means_what_its_kind_goes_by(
    meaning: Meaning, selector: str, run: str, sent: float, received: float, versions: set[int]
) -> None:
    assert meaning.possible(selector, run, sent, received) == versions


def test_a_run_stays_in_the_arm_that_it_had(meaning: Meaning) -> None:
    meaning.splits["m"].change(30.0, 31.0, split(a=5, b=6))
    for had_arm, version in {"a": 5, "b": 6}.items():
        assert meaning.possible("m", "r", 40, 41, had_arm=had_arm) == {version}
    assert {version for run in "abcdefgh" for version in meaning.possible("m", run, 40, 41)} == {5, 6}


def test_who_holds_a_version_is_answered_by_no_other(meaning: Meaning) -> None:
    assert Reply("m", "r", 7, 8, version=1, held=1).is_allowed(meaning)
    assert not Reply("m", "r", 7, 8, version=2, held=1).is_allowed(meaning)
    assert not Reply("m@stable", "r", 7, 8, version=1).is_allowed(meaning)
    assert Reply("m@stable", "r", 7, 8, version=2).is_allowed(meaning)
