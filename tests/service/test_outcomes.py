"""Outcomes over a socket: runs of a split report them; the report, asked by all ways there are, says which arm wins."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rm_api.v1 import errors_pb2, experiments_pb2, models_pb2
from running_server import RunningServer, error_of, make_rules_version, running

from ppo_client import AsyncRewardClient, RewardClient
from ppo_client.client.catalog import Trained
from ppo_client.client.errors import InvalidRequest, RunNotFound
from rm_server.cli import main
from rm_server.registry import outcomes as registry_outcomes

RUNS = [f"exp-{number}" for number in range(40)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Versions whose score is the length of the completion, up to 10 and 20."""
    root = tmp_path_factory.mktemp("versions")
    return [
        make_rules_version(root / f"v{number}", {"type": "length", "unit": "characters", "max": number * 10})
        for number in (1, 2)
    ]


@pytest.fixture
def server(tmp_path: Path, folders: list[Path]) -> Iterator[RunningServer]:
    """m's runs are divided between m@1 (arm a) and m@2 (arm b), half and half."""
    with running(tmp_path / "home") as server:
        server.deploy("m", *folders)
        arms = [experiments_pb2.Arm(name=name, version=version, weight=1) for name, version in (("a", 1), ("b", 2))]
        split = experiments_pb2.Split(model="m", arms=arms)
        server.experiments.SetSplit(experiments_pb2.SetSplitRequest(split=split))
        yield server


@pytest.fixture
def client(server: RunningServer) -> Iterator[RewardClient]:
    with RewardClient(server.app.grpc_address, run="exp-0") as client:
        yield client


def win_rate(arm: str, number: int) -> float:
    """0.1 better with the arm b; runs differ a little."""
    return (0.6 if arm == "b" else 0.5) + 0.01 * (number % 5 - 2)


def play(client: RewardClient) -> dict[str, Trained]:
    """All runs register, and report a win rate at two steps and a kl of the run as a whole; what each was kept with."""
    kept = {}
    for number, run in enumerate(RUNS):
        arm = client.register_run("m", run=run).arm
        client.report_outcome("m", "win_rate", 0.4, step=100, run=run)
        kept[run] = client.report_outcome("m", "win_rate", win_rate(arm, number), step=200, num_samples=50, run=run)
        client.report_outcome("m", "eval/kl", 6.0 + 0.1 * (number % 7), run=run)
    return kept


def report(server: RunningServer, **request: Any) -> dict[str, Any]:
    message = experiments_pb2.GetExperimentReportRequest(model="m", **request)
    found: dict[str, Any] = json.loads(server.experiments.GetExperimentReport(message).report_json)
    return found


def points(content: dict[str, Any], run: str) -> list[tuple[str, int, float]]:
    """Metric, step and value of a run's outcomes."""
    (record,) = (each for each in content["evidence"]["runs"] if each["run"] == run)
    return [(point["metric"], point["step"], point["value"]) for point in record["points"]]


def test_the_arm_whose_runs_win_more_is_better(server: RunningServer, client: RewardClient) -> None:
    kept = play(client)
    assert {trained.arm: trained.version for trained in kept.values()} == {"a": 1, "b": 2}
    content = report(server, baseline_arm="a")
    kl, wins = content["metrics"]
    assert (kl["metric"], wins["metric"]) == ("eval/kl", "win_rate")
    expected = {run: win_rate(trained.arm, number) for number, (run, trained) in enumerate(kept.items())}
    assert wins["values"] == {
        arm: {run: value for run, value in sorted(expected.items()) if kept[run].arm == arm} for arm in ("a", "b")
    }
    (row,) = wins["comparisons"]
    low, high = row["interval"]
    assert (row["arm"], row["verdict"]) == ("b", "better")
    assert low < 0.1 < high
    assert kl["comparisons"][0]["verdict"] == "cannot tell yet"
    assert (content["num_runs"], content["num_comparisons"], content["warnings"]) == (40, 2, [])
    counts = {arm["arm"]: arm for arm in content["assignment"]}
    for name in ("a", "b"):
        num_runs = sum(trained.arm == name for trained in kept.values())
        assert (counts[name]["num_runs"], counts[name]["num_reporting"]) == (num_runs, num_runs)
        assert (counts[name]["expected_runs"], counts[name]["expected_reporting"]) == (20.0, 20.0)
    assert [metric["metric"] for metric in report(server, metric="win_rate")["metrics"]] == ["win_rate"]


def test_runs_that_have_not_reported_are_counted(server: RunningServer, client: RewardClient) -> None:
    arms = {run: client.register_run("m", run=run).arm for run in RUNS[:10]}
    for run in RUNS[:3]:
        client.report_outcome("m", "win_rate", 0.5, run=run)
    for arm in report(server)["assignment"]:
        assert arm["num_runs"] == list(arms.values()).count(arm["arm"])
        assert arm["num_reporting"] == [arms[run] for run in RUNS[:3]].count(arm["arm"])
        assert (arm["expected_runs"], arm["expected_reporting"]) == (5.0, 1.5)


def test_the_same_run_metric_and_step_again_replaces(server: RunningServer, client: RewardClient) -> None:
    client.register_run("m")
    for value in (0.1, 0.2):
        client.report_outcome("m", "win_rate", value)
    client.report_outcome("m", "win_rate", 0.3, step=5)
    assert sorted(points(report(server), "exp-0")) == [("win_rate", 0, 0.2), ("win_rate", 5, 0.3)]


def test_an_outcome_needs_a_run_that_is_known(server: RunningServer, client: RewardClient) -> None:
    with pytest.raises(RunNotFound, match="nobody"):
        client.report_outcome("m", "win_rate", 0.5, run="nobody")
    with pytest.raises(RunNotFound):
        client.report_outcome("other", "win_rate", 0.5)
    assert report(server)["num_runs"] == 0
    # A run that names its version has no lease; it is known by what it scored, and has no arm.
    client.score("m@2", prompts=["Hi"], completions=["Hello"])
    assert client.report_outcome("m", "win_rate", 0.5) == Trained(2, "")
    content = report(server)
    assert (content["metrics"], content["num_runs_in_no_arm"]) == ([], 1)
    # A run that has ended is judged afterwards.
    client.register_run("m", run="ended")
    client.end_run("m", run="ended")
    assert client.report_outcome("m", "win_rate", 0.5, run="ended").arm in ("a", "b")


def test_what_can_be_no_outcome_is_refused(
    server: RunningServer, client: RewardClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.register_run("m")
    for metric, value in (("", 0.5), ("a b", 0.5), ("x" * 65, 0.5), ("win", math.nan), ("win", math.inf)):
        with pytest.raises(InvalidRequest):
            client.report_outcome("m", metric, value)
    for numbers in ({"step": -1}, {"num_samples": -1}):
        with pytest.raises(InvalidRequest):
            client.report_outcome("m", "win", 0.5, **numbers)
    for fields in ({"step": 2**63}, {"num_samples": 2**31}, {"run": "a b"}):
        request = {"run": "exp-0", "model": "m", "metric": "win", "value": 0.5} | fields
        _, error = error_of(
            lambda r=request: server.experiments.ReportOutcome(experiments_pb2.ReportOutcomeRequest(**r))
        )
        assert error.reason == errors_pb2.ERROR_REASON_INVALID_ARGUMENT
    _, error = error_of(
        lambda: server.experiments.GetExperimentReport(experiments_pb2.GetExperimentReportRequest(model="none"))
    )
    assert error.reason == errors_pb2.ERROR_REASON_MODEL_NOT_FOUND
    assert report(server)["num_runs"] == 0
    monkeypatch.setattr(registry_outcomes, "MAX_OUTCOMES_OF_RUN", 2)
    for step in (1, 2, 2):
        client.report_outcome("m", "win", 0.5, step=step)
    with pytest.raises(InvalidRequest, match="the most there can be"):
        client.report_outcome("m", "win", 0.5, step=3)


def test_a_run_that_moves_counts_for_the_arm_that_it_had_first(server: RunningServer, client: RewardClient) -> None:
    first = client.register_run("m")
    client.report_outcome("m", "win_rate", 0.5, step=1)
    other = 3 - first.version
    pin = experiments_pb2.Pin(run="exp-0", model="m", version=other)
    server.experiments.SetPin(experiments_pb2.SetPinRequest(pin=pin))
    client.register_run("m", move=True)
    assert client.report_outcome("m", "win_rate", 0.7, step=2) == Trained(other, "")
    content = report(server)
    assert content["metrics"][0]["values"] == {first.arm: {"exp-0": 0.7}}
    assert content["moved_runs"] == [{"run": "exp-0", "counts_for": first.arm, "versions": [1, 2]}]


def test_a_run_that_moved_and_reports_the_same_again_counts_for_the_arm_that_it_had_first(
    server: RunningServer, client: RewardClient
) -> None:
    first = client.register_run("m")
    client.report_outcome("m", "win_rate", 0.5)
    other = 3 - first.version
    arms = [experiments_pb2.Arm(name="ab"[other - 1], version=other, weight=1)]
    split = experiments_pb2.Split(model="m", arms=arms)
    server.experiments.SetSplit(experiments_pb2.SetSplitRequest(split=split))
    moved = client.register_run("m", move=True)
    client.score("m", prompts=["Hi"], completions=["Hello"])
    assert client.run_status("m").version == other
    # What the run has now is answered; where it counts is what it had.
    assert client.report_outcome("m", "win_rate", 0.7, num_samples=9) == Trained(other, moved.arm)
    content = report(server)
    assert content["metrics"][0]["values"] == {first.arm: {"exp-0": 0.7}}
    assert points(content, "exp-0") == [("win_rate", 0, 0.7)]


def test_outcomes_stay_across_restarts_and_when_a_version_is_deleted(
    tmp_path: Path, server: RunningServer, client: RewardClient
) -> None:
    play(client)
    before = report(server, baseline_arm="a")
    for run in RUNS:
        client.end_run("m", run=run)
    server.stop()
    with running(tmp_path / "home") as again:
        assert report(again, baseline_arm="a")["metrics"] == before["metrics"]
        again.experiments.RemoveSplit(experiments_pb2.RemoveSplitRequest(model="m"))
        again.models.UnloadVersion(models_pb2.UnloadVersionRequest(selector="m@2"))
        again.models.DeleteVersion(models_pb2.DeleteVersionRequest(model="m", version=2))
        after = report(again, baseline_arm="a")
        assert (after["metrics"], after["assignment"]) == (before["metrics"], [])
        with RewardClient(again.app.grpc_address) as later:
            late = {later.report_outcome("m", "judge", 1.0, run=run).version for run in RUNS}
        assert late == {1, 2}


async def test_the_async_client_does_the_same(server: RunningServer) -> None:
    async with AsyncRewardClient(server.app.grpc_address, run="exp-0") as client:
        lease = await client.register_run("m")
        assert await client.report_outcome("m", "win", 0.5, step=3) == Trained(lease.version, lease.arm)
    content = await asyncio.to_thread(report, server)
    assert points(content, "exp-0") == [("win", 3, 0.5)]


def test_the_commands_say_the_same_of_a_server_and_of_its_home(
    server: RunningServer, client: RewardClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, here = ["--server", server.app.grpc_address], ["--home", str(tmp_path / "home")]

    def said(*arguments: str, status: int = 0) -> str:
        assert main(["experiment", *arguments]) == status
        out, err = capsys.readouterr()
        return out if status == 0 else err

    assert "No run of an arm of m has reported" in said("report", "m", *there)
    assert "nothing to draw" in said("report", "m", "--html", str(tmp_path / "r.html"), *there, status=1)
    kept = play(client)
    assert f"arm {kept['exp-3'].arm}" in said("outcome", "exp-3", "m", "judge", "0.25", "--samples", "9", *there)
    said("outcome", "exp-4", "m", "judge", "0.75", "--step", "7", *here)
    assert "No run 'nobody'" in said("outcome", "nobody", "m", "judge", "1", *here, status=1)
    assert "'judge '" in said("outcome", "exp-4", "m", "judge ", "1", *here, status=1)
    listed = [json.loads(said("outcomes", "m", "--json", *where)) for where in (there, here)]
    assert listed[0] == listed[1]
    assert len(listed[0]) == 3 * len(RUNS) + 2
    judged = {row["run"]: row for row in listed[0] if row["metric"] == "judge"}
    assert (judged["exp-3"]["num_samples"], judged["exp-4"]["step"], judged["exp-4"]["value"]) == (9, 7, 0.75)
    options = ("--baseline", "a", "--lower-is-better", "eval/kl", "--minimum", "eval/kl=0.1", "--last", "2")
    found = [json.loads(said("report", "m", "--json", *options, *where)) for where in (there, here)]
    assert found[0]["metrics"] == found[1]["metrics"]
    kl = next(metric for metric in found[0]["metrics"] if metric["metric"] == "eval/kl")
    assert kl["higher_is_better"] is False
    assert kl["comparisons"][0]["runs_needed"]["for_minimum"]["difference"] == 0.1
    text = said("report", "m", *options, *there)
    assert "b against a: BETTER" in text
    assert "more run" in text
    assert "the mean of its last 2 steps" in text
    assert "are from different steps" not in text  # 0.25 is of the run as a whole
    for wrong in (("--minimum", "x"), ("--minimum", "x=-1"), ("--metric", "x")):
        assert said("report", "m", *wrong, *there, status=1)


def test_the_page_stands_alone(server: RunningServer, client: RewardClient, tmp_path: Path) -> None:
    play(client)
    client.report_outcome("m", "odd", 1.0)
    file = tmp_path / "report.html"
    assert main(["experiment", "report", "m", "--html", str(file), "--server", server.app.grpc_address]) == 0
    page = file.read_text(encoding="utf-8")
    # A forest, dots and curves of win_rate; a forest and dots of eval/kl; dots of odd; and the runs so far.
    assert page.count("<svg") == 3 + 2 + 1 + 1
    assert '<span class="verdict better">better</span>' in page or '<span class="verdict worse">worse</span>' in page
    assert "nothing to compare" in page
    assert "<script" not in page
    assert 'src="http' not in page
