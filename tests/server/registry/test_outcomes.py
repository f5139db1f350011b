"""Outcomes in the catalog: one of each run, model, metric and step, and what a report is made from."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from rm_server.errors import InvalidRequest, ModelNotFound
from rm_server.registry import outcomes
from rm_server.registry.catalog import Catalog
from rm_server.registry.outcomes import Outcome, Registration, check_outcome, experiment_records, put_outcome
from rm_server.registry.records import Arm, Split
from rm_server.registry.run_records import Lease, RunStatistics
from rm_server.registry.runs import assign_run, write_activity
from rm_server.registry.splits import set_split

TIME = datetime(2026, 1, 2, tzinfo=UTC)
WIN = Outcome("a", "m", "win", 0, 1, "old", 0.5, 10, TIME)


def test_the_same_again_replaces_the_value_and_not_what_the_run_had(catalog: Catalog) -> None:
    others = [
        replace(WIN, run="b"),
        replace(WIN, model="other"),
        replace(WIN, metric="kl"),
        replace(WIN, step=100),
    ]
    for outcome in (WIN, *others):
        put_outcome(catalog, outcome)
    later = TIME + timedelta(hours=1)
    put_outcome(catalog, replace(WIN, version=2, arm="new", value=0.7, num_samples=20, time=later))
    kept = {*experiment_records(catalog, "m").outcomes, *experiment_records(catalog, "other").outcomes}
    assert kept == {replace(WIN, value=0.7, num_samples=20), *others}


def test_one_run_has_so_many_outcomes_of_a_model(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "MAX_OUTCOMES_OF_RUN", 2)
    for outcome in (WIN, replace(WIN, step=1), replace(WIN, step=1, value=0.7)):
        put_outcome(catalog, outcome)
    with pytest.raises(InvalidRequest, match="The run 'a' has 2 outcomes of 'm' already"):
        put_outcome(catalog, replace(WIN, step=2))
    for other in (replace(WIN, run="b", step=2), replace(WIN, model="other", step=2)):
        put_outcome(catalog, other)


@pytest.mark.parametrize(
    "wrong",
    [
        {"metric": ""},
        {"metric": "win rate"},
        {"metric": "win\n"},
        {"metric": "x" * 65},
        {"value": math.nan},
        {"value": 1.1e100},
        {"value": -1.1e100},
        {"step": -1},
        {"step": 2**63},
        {"num_samples": -1},
        {"num_samples": 2**31},
    ],
)
def test_what_can_be_no_outcome_is_not_kept(catalog: Catalog, wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match=str(*wrong)):
        put_outcome(catalog, replace(WIN, **wrong))  # type: ignore[arg-type]
    assert experiment_records(catalog, "m").outcomes == ()


def test_the_ends_of_what_an_outcome_can_be(catalog: Catalog) -> None:
    for value in (1e100, -1e100):
        check_outcome("eval/Win.rate_0-1", value, 0, 0)
    largest = replace(WIN, metric="x" * 64, step=2**63 - 1, num_samples=2**31 - 1)
    put_outcome(catalog, largest)
    assert experiment_records(catalog, "m").outcomes == (largest,)


def test_no_model_has_no_outcomes(catalog: Catalog) -> None:
    with pytest.raises(ModelNotFound, match="no model 'nowhere'"):
        put_outcome(catalog, replace(WIN, model="nowhere"))
    with pytest.raises(ModelNotFound, match="no model 'nowhere'"):
        experiment_records(catalog, "nowhere")


def test_the_outcomes_of_a_model_come_in_the_order_of_their_times_and_steps(catalog: Catalog) -> None:
    late = TIME + timedelta(hours=1)
    ordered = [
        replace(WIN, run="b", step=2),
        replace(WIN, run="a", metric="kl", step=7),
        replace(WIN, run="a", step=7),
        replace(WIN, run="b", metric="kl", step=7),
        replace(WIN, run="a", step=1, time=late),
    ]
    for outcome in (replace(WIN, model="other"), *reversed(ordered)):
        put_outcome(catalog, outcome)
    assert list(experiment_records(catalog, "m").outcomes) == ordered


def test_a_report_is_made_from_the_runs_and_the_split_of_its_model(catalog: Catalog) -> None:
    split = set_split(catalog, Split("m", (Arm("old", 1, 1.0), Arm("new", 2, 1.0)), "", TIME), "ann")
    set_split(catalog, Split("other", (Arm("old", 1, 1.0),), "", TIME), "ann")

    def give(run: str, model: str, arm: str | None, seen: Lease | None = None, hours: int = 0) -> Lease:
        now = (TIME + timedelta(hours=hours)).timestamp()
        return assign_run(catalog, Lease(run, model, 1, "a" * 64, arm, 900.0, now, now + 900), seen)[0]

    give("c", "m", "old")
    first = give("a", "m", "old")
    give("a", "m", "new", first, hours=1)
    give("b", "m", None)
    give("a", "other", "old")
    scored = (("a", "m", 1), ("a", "m", 2), ("b", "m", 2), ("c", "other", 1))
    write_activity(catalog, [], [RunStatistics(*key, last_seen=TIME.timestamp()) for key in scored])
    records = experiment_records(catalog, "m")
    # A run was registered when it came first, whatever arm it moved to since; one in no arm is none of the split's.
    assert records.registrations == (Registration("a", "new", TIME), Registration("c", "old", TIME))
    assert records.versions == {"a": {1, 2}, "b": {2}}
    assert records.split == split
