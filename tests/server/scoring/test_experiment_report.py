"""What a report says of runs: by which arm they count, which verdict that gives, what it warns of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from scipy import stats

from rm_server.errors import InvalidRequest
from rm_server.scoring.comparison.experiment import runs_needed
from rm_server.scoring.comparison.experiment_evidence import ArmCount, Evidence, Point, RunRecord
from rm_server.scoring.comparison.experiment_report import ReportOptions, report
from rm_server.scoring.comparison.run_values import Cut, value_of

VERSIONS = {"a": 1, "b": 2, "c": 3, "": 9}


def point(value: float, *, metric: str = "win", step: int = 0, arm: str = "a", version: int | None = None) -> Point:
    number = VERSIONS[arm] if version is None else version
    return Point(metric, step, value, 0, number, arm, "2026-11-20T12:00:00Z")


def run(name: str, arm: str, *points: Point, versions: Sequence[int] = ()) -> RunRecord:
    first = points[0]
    return RunRecord(name, arm, first.version, tuple(versions) or (first.version,), points)


def runs(arm: str, values: Sequence[float], metric: str = "win") -> list[RunRecord]:
    return [run(f"{arm}-{index}", arm, point(v, metric=metric, arm=arm)) for index, v in enumerate(values)]


def evidence(*records: RunRecord, arms: Sequence[ArmCount] = ()) -> Evidence:
    return Evidence("m", "2026-11-20T13:00:00Z", records, tuple(arms))


A, B, C = [0.50, 0.52, 0.51, 0.49, 0.50], [0.60, 0.63, 0.61, 0.62], [0.50, 0.53, 0.48]


def comparisons(content: dict[str, Any], metric: str = "win") -> dict[str, Any]:
    (found,) = (each for each in content["metrics"] if each["metric"] == metric)
    return {row["arm"]: row for row in found["comparisons"]}


def test_arms_are_compared_with_the_largest_and_corrected_for_their_number() -> None:
    a, b = [*A, 0.51], [*B, 0.60]
    content = report(evidence(*runs("a", a), *runs("b", b), *runs("c", C)))
    assert content["baseline"] == "a"
    assert [(arm["arm"], arm["version"], arm["num_runs"]) for arm in content["arms"]] == [
        ("a", 1, 6),
        ("b", 2, 5),
        ("c", 3, 3),
    ]
    found = comparisons(content)
    p_value = stats.ttest_ind(b, a, equal_var=False).pvalue
    assert found["b"]["p_value"] == pytest.approx(p_value, rel=1e-9)
    assert found["b"]["corrected_p_value"] == pytest.approx(2 * p_value, rel=1e-9)
    assert (found["b"]["verdict"], found["b"]["holds_at_any_time"]) == ("better", True)
    assert found["c"]["verdict"] == "cannot tell yet"
    assert not {"anytime_interval", "holds_at_any_time"} & found["c"].keys()  # too few runs to look at any time
    assert "runs_needed" not in found["b"]
    assert content["num_comparisons"] == 2


def test_a_verdict_needs_the_corrected_p_value() -> None:
    near = [0.52, 0.53, 0.51, 0.525]
    alone = comparisons(report(evidence(*runs("a", A), *runs("b", near))))["b"]
    assert alone["verdict"] == "better"
    found = comparisons(report(evidence(*runs("a", A), *runs("b", near), *runs("c", C))))["b"]
    assert found["p_value"] == alone["p_value"] < 0.05 < found["corrected_p_value"]
    assert found["verdict"] == "cannot tell yet"


def test_a_verdict_on_very_few_runs_comes_with_a_caution() -> None:
    def is_cautious(*records: RunRecord) -> bool:
        return any("fewer than 5 runs in an arm" in warning for warning in report(evidence(*records))["warnings"])

    assert is_cautious(*runs("a", [0.5, 0.5001]), *runs("b", [0.6, 0.6001]))
    assert is_cautious(*runs("a", A), *runs("b", B))
    assert not is_cautious(*runs("a", A), *runs("b", [*B, 0.60]))
    assert not is_cautious(*runs("a", A), *runs("c", C)), "there is no verdict"


def test_another_baseline_turns_the_verdict_round() -> None:
    content = report(evidence(*runs("a", A), *runs("b", B)), ReportOptions(baseline="b"))
    assert comparisons(content)["a"]["verdict"] == "worse"
    assert comparisons(content)["a"]["difference"] < 0
    assert [arm["arm"] for arm in content["arms"]] == ["b", "a"]


def test_where_less_is_better_more_is_worse() -> None:
    options = ReportOptions(lower_is_better=frozenset({"win"}))
    assert comparisons(report(evidence(*runs("a", A), *runs("b", B)), options))["b"]["verdict"] == "worse"


def test_how_many_more_runs_it_would_take() -> None:
    options = ReportOptions(minimum_differences={"win": 0.02})
    found = comparisons(report(evidence(*runs("a", A), *runs("c", C)), options))["c"]
    std, base_std = float(stats.tstd(C)), float(stats.tstd(A))
    for name, difference in (("if_as_observed", found["difference"]), ("for_minimum", 0.02)):
        per_arm = runs_needed(std, base_std, difference)
        assert per_arm is not None
        assert found["runs_needed"][name]["runs_per_arm"] == per_arm
        assert found["runs_needed"][name]["more_runs"] == {"c": max(0, per_arm - 3), "a": max(0, per_arm - 5)}
    both = report(evidence(*runs("a", A), *runs("b", B), *runs("c", C)), options)
    stricter = comparisons(both)["c"]["runs_needed"]
    assert stricter["alpha"] == pytest.approx(0.025)
    assert stricter["for_minimum"]["runs_per_arm"] > found["runs_needed"]["for_minimum"]["runs_per_arm"]


def test_single_runs_and_equal_values_cannot_be_judged_and_count_for_no_correction() -> None:
    content = report(evidence(*runs("a", A), *runs("b", B), *runs("c", [0.9])))
    found = comparisons(content)
    assert found["c"]["verdict"] == "cannot tell yet"
    assert "single run" in found["c"]["reason"]
    assert "p_value" not in found["c"]
    assert content["num_comparisons"] == 1
    assert found["b"]["corrected_p_value"] == found["b"]["p_value"]
    same = comparisons(report(evidence(*runs("a", [0.5] * 3), *runs("b", [0.6] * 3))))["b"]
    assert same["verdict"] == "cannot tell yet"
    assert "same value" in same["reason"]


def test_a_run_that_moved_counts_for_its_first_arm_and_is_named() -> None:
    moved = run("moved", "a", point(0.5, step=1, arm="a"), point(0.9, step=2, arm="b"), versions=(1, 2))
    content = report(evidence(moved, *runs("a", A), *runs("b", B)))
    assert content["metrics"][0]["values"]["a"]["moved"] == 0.9
    assert content["moved_runs"] == [{"run": "moved", "counts_for": "a", "versions": [1, 2]}]
    assert any("several versions" in warning for warning in content["warnings"])
    unmoved = report(evidence(*runs("a", A), *runs("b", [*B, 0.60])))
    assert (unmoved["moved_runs"], unmoved["warnings"]) == ([], [])


def test_runs_that_no_split_gave_their_version_are_left_out() -> None:
    content = report(evidence(*runs("a", A), *runs("b", B), *runs("", [5.0, 6.0])))
    assert set(content["metrics"][0]["values"]) == {"a", "b"}
    assert content["num_runs_in_no_arm"] == 2
    assert any("by no split" in warning for warning in content["warnings"])
    nobody = report(evidence(*runs("", [5.0, 6.0])))
    assert (nobody["metrics"], nobody["arms"]) == ([], [])
    assert "baseline" not in nobody


def test_an_arm_whose_version_changed_is_two_arms() -> None:
    later = [run(f"later-{i}", "a", point(value, arm="a", version=7)) for i, value in enumerate(B)]
    content = report(evidence(*runs("a", A), *later))
    assert [arm["arm"] for arm in content["arms"]] == ["a@1", "a@7"]
    assert comparisons(content)["a@7"]["verdict"] == "better"
    assert any("changed on the way" in warning for warning in content["warnings"])


def test_runs_that_are_lost_in_one_arm_are_noticed() -> None:
    lost = [ArmCount("a", 50, 50.0, 48, 37.0), ArmCount("b", 50, 50.0, 26, 37.0)]
    fine = [ArmCount("a", 52, 50.0, 50, 48.0), ArmCount("b", 48, 50.0, 46, 48.0)]
    gone = [ArmCount("a", 52, 50.0, 60, 37.0), ArmCount("b", 48, 50.0, 14, 37.0)]
    both = (*runs("a", A), *runs("b", [*B, 0.60]))
    assert report(evidence(*both, arms=lost))["warnings"] == []  # p 0.01: that happens
    assert report(evidence(*both, arms=fine))["warnings"] == []
    (warning,) = report(evidence(*both, arms=gone))["warnings"]
    assert "have reported" in warning
    assert "b 14 (expected 37.0)" in warning


def test_values_from_different_steps_are_noticed() -> None:
    records = [
        run("a-0", "a", point(0.1, step=100), point(0.2, step=200)),
        run("a-1", "a", point(0.1, step=100), point(0.2, step=200)),
        run("b-0", "b", point(0.1, step=100, arm="b")),
    ]
    (warning,) = report(evidence(*records))["warnings"]
    assert "100 to 200" in warning
    early = report(evidence(*records), ReportOptions(cut=Cut(until_step=100)))
    assert early["warnings"] == []
    assert early["metrics"][0]["values"] == {"a": {"a-0": 0.1, "a-1": 0.1}, "b": {"b-0": 0.1}}


def test_the_value_of_a_run() -> None:
    trained = run("r", "a", *(point(float(step), step=step) for step in (30, 10, 20)))
    assert value_of(trained, "win", Cut()) == 30.0
    assert value_of(trained, "win", Cut(last_steps=2)) == 25.0
    assert value_of(trained, "win", Cut(last_steps=9)) == 20.0
    assert value_of(trained, "win", Cut(until_step=25)) == 20.0
    assert value_of(trained, "win", Cut(until_step=5)) is None
    assert value_of(trained, "kl", Cut()) is None
    judged = run("r", "a", point(7.0), point(1.0, step=10))
    assert value_of(judged, "win", Cut()) == 7.0
    assert value_of(judged, "win", Cut(until_step=10)) == 1.0


def test_names_that_are_not_there_are_refused_with_those_that_are() -> None:
    there = evidence(*runs("a", A), *runs("b", B))
    for options, named in (
        (ReportOptions(metric="wins"), "win"),
        (ReportOptions(baseline="x"), "a, b"),
        (ReportOptions(lower_is_better=frozenset({"kl"})), "win"),
        (ReportOptions(minimum_differences={"kl": 1.0}), "win"),
    ):
        with pytest.raises(InvalidRequest, match=named):
            report(there, options)
    with pytest.raises(InvalidRequest, match="none"):
        report(evidence(), ReportOptions(metric="win"))


def test_one_metric_alone_is_corrected_for_itself_alone() -> None:
    both = evidence(*runs("a", A), *runs("b", B), *(run(f"x-{i}", "a", point(v, metric="kl")) for i, v in enumerate(A)))
    assert [metric["metric"] for metric in report(both)["metrics"]] == ["kl", "win"]
    assert [metric["metric"] for metric in report(both, ReportOptions(metric="win"))["metrics"]] == ["win"]


def test_evidence_and_report_travel_as_json() -> None:
    there = evidence(*runs("a", A), *runs("b", B), arms=[ArmCount("a", 5, 4.5, 5, 4.5)])
    content = json.loads(json.dumps(report(there), allow_nan=False))
    assert Evidence.from_json(content["evidence"]) == there
    assert report(Evidence.from_json(content["evidence"])) == content
