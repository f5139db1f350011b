"""Which arm a run belongs to, as tables: the shares, the ramps, and who moves when a split changes."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import pytest

from rm_server.registry.records import Arm, RampPoint, Split
from rm_server.scoring.split import choose_arm, shares, weight_at

RUNS = [f"run-{number}" for number in range(10_000)]


def split(*arms: Arm, salt: str = "m") -> Split:
    return Split("m", arms, salt, datetime(2026, 1, 1, tzinfo=UTC))


def two(first: float, second: float) -> Split:
    return split(Arm("a", 1, first), Arm("b", 2, second))


def chosen(divided: Split, now_s: float = 0.0) -> dict[str, str]:
    arms = {run: choose_arm(divided, run, now_s) for run in RUNS}
    return {run: arm.name for run, arm in arms.items() if arm is not None}


@pytest.mark.parametrize("salt", ["m", "helpfulness", "another experiment", ""])
@pytest.mark.parametrize("weights", [(0.9, 0.1), (9.0, 1.0), (9e299, 1e299), (9e-300, 1e-300)])
def test_ten_thousand_runs_are_divided_as_the_weights_say(salt: str, weights: tuple[float, float]) -> None:
    counts = Counter(chosen(split(Arm("a", 1, weights[0]), Arm("b", 2, weights[1]), salt=salt)).values())
    assert counts["a"] + counts["b"] == 10_000
    assert abs(counts["a"] / 10_000 - 0.9) < 0.01


def test_a_run_gets_the_same_arm_for_ever() -> None:
    # Written down once: another release, another process and another machine must find the same.
    assert [chosen(two(0.5, 0.5))[run] for run in RUNS[:12]] == list("aaababaabaab")


def test_a_new_arm_moves_runs_only_to_itself() -> None:
    before = chosen(two(0.9, 0.1))
    after = chosen(split(Arm("a", 1, 0.9), Arm("b", 2, 0.1), Arm("c", 3, 0.5)))
    moved = {run for run in RUNS if before[run] != after[run]}
    assert {after[run] for run in moved} == {"c"}
    assert len(moved) / 10_000 == pytest.approx(0.5 / 1.5, abs=0.01)


def test_an_arm_that_goes_moves_only_its_own_runs() -> None:
    before = chosen(split(Arm("a", 1, 1.0), Arm("b", 2, 1.0), Arm("c", 3, 1.0)))
    after = chosen(split(Arm("a", 1, 1.0), Arm("b", 2, 1.0)))
    assert all(after[run] == before[run] for run in RUNS if before[run] != "c")


def test_a_weight_that_grows_moves_only_as_many_runs_as_it_must() -> None:
    before, after = chosen(two(0.9, 0.1)), chosen(two(0.7, 0.3))
    moved = [run for run in RUNS if before[run] != after[run]]
    assert {(before[run], after[run]) for run in moved} == {("a", "b")}
    assert len(moved) / 10_000 == pytest.approx(0.2, abs=0.01)


def test_the_order_of_the_arms_and_the_unit_of_the_weights_do_not_matter() -> None:
    assert chosen(two(0.9, 0.1)) == chosen(split(Arm("b", 2, 10.0), Arm("a", 1, 90.0)))


def test_another_salt_divides_independently() -> None:
    here, there = chosen(two(0.5, 0.5)), chosen(split(Arm("a", 1, 0.5), Arm("b", 2, 0.5), salt="n"))
    assert sum(here[run] == there[run] for run in RUNS) / 10_000 == pytest.approx(0.5, abs=0.02)


RAMP = (RampPoint(100.0, 0.0), RampPoint(200.0, 1.0), RampPoint(300.0, 0.5))


@pytest.mark.parametrize(
    ("now_s", "weight"),
    [(0.0, 0.25), (99.9, 0.25), (100.0, 0.0), (150.0, 0.5), (200.0, 1.0), (250.0, 0.75), (300.0, 0.5), (1e9, 0.5)],
)
def test_a_weight_follows_its_ramp(now_s: float, weight: float) -> None:
    assert weight_at(Arm("b", 2, 0.25, RAMP), now_s) == pytest.approx(weight)


def test_a_ramp_moves_runs_one_way_only() -> None:
    ramped = split(Arm("a", 1, 1.0), Arm("b", 2, 0.0, (RampPoint(100.0, 0.0), RampPoint(200.0, 1.0))))
    assert shares(ramped, 0.0) == {"a": 1.0, "b": 0.0}
    assert shares(ramped, 200.0) == {"a": 0.5, "b": 0.5}
    known = chosen(ramped, 0.0)
    for now_s in (120.0, 150.0, 200.0):
        now = chosen(ramped, now_s)
        assert all(now[run] == "b" for run in RUNS if known[run] == "b")
        assert Counter(now.values())["b"] / 10_000 == pytest.approx(shares(ramped, now_s)["b"], abs=0.01)
        known = now


def test_a_run_stays_in_the_arm_that_it_had_while_that_takes_runs() -> None:
    divided = two(0.9, 0.1)
    assert {arm.name for run in RUNS[:50] if (arm := choose_arm(divided, run, 0.0, had="b"))} == {"b"}
    closed = two(1.0, 0.0)
    assert {arm.name for run in RUNS[:50] if (arm := choose_arm(closed, run, 0.0, had="b"))} == {"a"}
    assert choose_arm(divided, "run-0", 0.0, had="gone") == choose_arm(divided, "run-0", 0.0)


def test_the_shares_of_the_open_arms_add_up_where_one_is_closed() -> None:
    assert shares(split(Arm("a", 1, 6.0), Arm("b", 2, 2.0), Arm("c", 3, 0.0)), 0.0) == {"a": 0.75, "b": 0.25, "c": 0.0}


def test_no_arm_takes_runs_when_all_weights_are_0() -> None:
    assert choose_arm(two(0.0, 0.0), "run-0", 0.0) is None
    assert shares(two(0.0, 0.0), 0.0) == {"a": 0.0, "b": 0.0}
