"""Splits, pins and runs over a socket: what operators set, what runs get, and what stays across restarts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rm_api.v1 import errors_pb2, experiments_pb2, models_pb2
from running_server import RunningServer, error_of, make_rules_version, running

from ppo_client import RewardClient
from ppo_client.client.errors import NotCalibrated, RunNotFound, VersionChanged
from rm_server.cli import main
from rm_server.config import CatalogSettings

RUNS = [f"run-{number}" for number in range(40)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Versions whose score is the length of the completion, up to 10, 20 and 30."""
    root = tmp_path_factory.mktemp("versions")
    return [
        make_rules_version(root / f"v{number}", {"type": "length", "unit": "characters", "max": number * 10})
        for number in (1, 2, 3)
    ]


@pytest.fixture
def server(tmp_path: Path, folders: list[Path]) -> Iterator[RunningServer]:
    """m@1 (stable) and m@2 are loaded, m@3 is not."""
    with running(tmp_path / "home") as server:
        server.deploy("m", *folders[:2])
        server.models.RegisterVersion(models_pb2.RegisterVersionRequest(model="m", path=str(folders[2])))
        yield server


def split(*arms: tuple[str, int, float], **options: object) -> experiments_pb2.SetSplitRequest:
    message = experiments_pb2.Split(
        model="m",
        arms=[experiments_pb2.Arm(name=name, version=version, weight=weight) for name, version, weight in arms],
    )
    return experiments_pb2.SetSplitRequest(split=message, **options)  # type: ignore[arg-type]


def arms_of(server: RunningServer) -> dict[str, str]:
    """What each run is answered by; arm and version agree with what the reply says."""
    replies = {run: server.score("m", "a", run=run) for run in RUNS}
    return {run: f"{reply.arm}{reply.version}" for run, reply in replies.items()}


def test_runs_keep_their_arms_across_restarts_and_new_splits(
    tmp_path: Path, server: RunningServer, folders: list[Path]
) -> None:
    reply = server.experiments.SetSplit(split(("a", 1, 3.0), ("b", 2, 1.0), comment="twice the data"))
    assert (reply.split.salt, dict(reply.split.shares)) == ("m", {"a": 0.75, "b": 0.25})
    given = arms_of(server)
    assert set(given.values()) == {"a1", "b2"}
    (known,) = server.experiments.ListSplits(experiments_pb2.ListSplitsRequest(model="m")).splits
    assert dict(known.num_runs) == {name[0]: list(given.values()).count(name) for name in ("a1", "b2")}
    server.experiments.SetSplit(split(("c", 3, 1.0), ("a", 1, 1.0), load=True))
    server.stop()
    with running(tmp_path / "home") as again:
        assert arms_of(again) == given
        assert again.score("m", "a", run="new-run-1").arm in ("a", "c")
        assert again.score("m", "a").arm == ""  # nobody's call sticks to nothing
        entries = again.models.ListHistory(models_pb2.ListHistoryRequest(model="m")).entries
        first = next(entry for entry in reversed(entries) if entry.action == "set_split")
        assert (first.comment, bool(first.actor)) == ("twice the data", True)
        again.experiments.RemoveSplit(experiments_pb2.RemoveSplitRequest(model="m"))
        assert arms_of(again) == given
        assert again.score("m", "a", run="new-run-2").arm == ""


def test_a_split_of_two_servers_on_one_home_is_one_split(tmp_path: Path, server: RunningServer) -> None:
    server.experiments.SetSplit(split(("a", 1, 1.0), ("b", 2, 1.0)))
    with running(tmp_path / "home") as other:
        here = {run: server.score("m", "a", run=run).arm for run in RUNS[:20]}
        there = {run: other.score("m", "a", run=run).arm for run in RUNS}
        assert {run: there[run] for run in here} == here
        assert {run: server.score("m", "a", run=run).arm for run in RUNS} == there


def test_splits_and_pins_are_of_what_another_server_registered_and_set_a_moment_ago(
    tmp_path: Path, server: RunningServer, folders: list[Path]
) -> None:
    with running(tmp_path / "home", catalog=CatalogSettings(poll_s=60)) as other:
        server.deploy("n", *folders[:2])
        pin = experiments_pb2.Pin(run="r", model="n", version=1)
        _, error = error_of(lambda: other.experiments.SetPin(experiments_pb2.SetPinRequest(pin=pin)))
        assert "n@1 is not loaded" in error.message  # here; that there is such a version is known
        server.experiments.SetPin(experiments_pb2.SetPinRequest(pin=pin))
        server.deploy("o", *folders[:2])
        message = experiments_pb2.Split(model="o", arms=[experiments_pb2.Arm(name="a", version=2, weight=1.0)])
        other.experiments.SetSplit(experiments_pb2.SetSplitRequest(split=message, load=True))
        for one in (other, server):
            known = one.experiments.ListSplits(experiments_pb2.ListSplitsRequest())
            assert ([each.model for each in known.splits], list(known.pins)) == (["o"], [pin])


def test_a_pin_comes_before_the_split_when_the_run_asks_next(server: RunningServer) -> None:
    server.experiments.SetSplit(split(("a", 1, 1.0)))
    assert server.score("m", "a", run="r").version == 1
    pin = experiments_pb2.Pin(run="r", model="m", version=2)
    server.experiments.SetPin(experiments_pb2.SetPinRequest(pin=pin, comment="a second look"))
    assert list(server.experiments.ListSplits(experiments_pb2.ListSplitsRequest()).pins) == [pin]
    assert server.score("m", "a", run="r").version == 1
    request = experiments_pb2.RegisterRunRequest(run="r", model="m", move=True)
    assert server.experiments.RegisterRun(request).lease.version == 2
    server.experiments.RemovePin(experiments_pb2.RemovePinRequest(run="r", model="m"))
    assert server.experiments.RegisterRun(request).lease.version == 1


def test_refuses_what_makes_no_sense(server: RunningServer) -> None:
    def reason(request: experiments_pb2.SetSplitRequest) -> str:
        _, error = error_of(lambda: server.experiments.SetSplit(request))
        return errors_pb2.ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_")

    assert reason(split()) == "INVALID_ARGUMENT"
    for weight in (-1.0, float("nan"), float("inf")):
        assert reason(split(("a", 1, weight), ("b", 2, 1.0))) == "INVALID_ARGUMENT"
    assert reason(split(("a", 1, 0.0))) == "INVALID_ARGUMENT"
    assert reason(split(("a", 1, 1.0), ("a", 2, 1.0))) == "INVALID_ARGUMENT"
    assert reason(split(("a b", 1, 1.0))) == "INVALID_ARGUMENT"
    assert reason(split(("a", 3, 1.0))) == "VERSION_NOT_LOADED"
    assert reason(split(("a", 9, 1.0))) == "VERSION_NOT_FOUND"
    backwards = split(("a", 1, 1.0))
    for day in (2, 1):
        backwards.split.arms[0].ramp.add(weight=1.0).time.FromDatetime(datetime(2026, 1, day, tzinfo=UTC))
    assert reason(backwards) == "INVALID_ARGUMENT"
    for seconds in (10**15, -(10**15), None):  # far beyond all calendars; and no time at all
        timeless = split(("a", 1, 1.0))
        point = timeless.split.arms[0].ramp.add(weight=1.0)
        if seconds is not None:
            point.time.seconds = seconds
        assert reason(timeless) == "INVALID_ARGUMENT"
    _, error = error_of(lambda: server.experiments.RemoveSplit(experiments_pb2.RemoveSplitRequest(model="m")))
    assert error.reason == errors_pb2.ERROR_REASON_INVALID_ARGUMENT
    assert not server.experiments.ListSplits(experiments_pb2.ListSplitsRequest()).splits
    server.experiments.SetSplit(split(("a", 2, 1.0)))
    unload = models_pb2.UnloadVersionRequest(selector="m@2", force=True)
    _, error = error_of(lambda: server.models.UnloadVersion(unload))
    assert error.reason == errors_pb2.ERROR_REASON_VERSION_IN_USE


def test_the_commands_say_and_do_the_same(
    server: RunningServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    at = (datetime.now(UTC) + timedelta(days=2)).strftime("%Y-%m-%dT%H:%MZ")
    there, here = ["--server", server.app.grpc_address], ["--home", str(tmp_path / "home")]
    for model, who in (["m"], "m has no"), ([], "No model has a"):
        assert main(["split", "show", *model, *there]) == 0
        assert capsys.readouterr().out == f"{who} split; `rm-server split set` makes one.\n"
    assert main(["split", "set", "m", "a=1:0.9", "b=2:0.1", "--ramp", f"b=0.5@{at}", "--reason", "try it", *there]) == 0
    assert "90.0%" in capsys.readouterr().out
    for run in RUNS[:5]:
        server.score("m", "abc", run=run)
    assert main(["split", "pin", "m", "exp-17", "2", *there]) == 0
    capsys.readouterr()
    shown = []
    for where in (there, here):
        assert main(["split", "show", "--json", *where]) == 0
        shown.append(json.loads(capsys.readouterr().out))
    assert shown[0]["pins"] == shown[1]["pins"] == [{"model": "m", "run": "exp-17", "version": 2}]
    for known in shown:
        (one,) = known["splits"]
        assert [(arm["arm"], arm["version"], round(arm["share"], 6)) for arm in one["arms"]] == [
            ("a", 1, 0.9),
            ("b", 2, 0.1),
        ]
        assert one["arms"][1]["ramp"][0]["weight"] == 0.5
        assert sum(arm["num_runs"] for arm in one["arms"]) == 5
    assert main(["runs", "m", *there]) == 0
    table = capsys.readouterr().out
    assert " ".join(table.splitlines()[0].split()) == (
        "RUN MODEL VERSION ARM ITEMS TOKENS/S MEAN ± STD LAST SEEN LEASE UNTIL"
    )
    assert main(["runs", "m", "--json", *there]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["run"] for row in rows} == set(RUNS[:5])
    assert {(row["items"], row["version_items"]) for row in rows} == {(1, 1)}
    assert main(["split", "unpin", "m", "exp-17", *there]) == 0
    assert main(["split", "remove", "m", *here]) == 0
    capsys.readouterr()
    assert main(["split", "remove", "m", *here]) == 1
    assert "has no split" in capsys.readouterr().err
    for wrong in (["a=1"], ["a=x:1"], ["a=1:1", "--ramp", "b=1@2026-12-01"], ["a=1:1", "--ramp", "a=1"]):
        assert main(["split", "set", "m", *wrong, *there]) == 1


@pytest.mark.parametrize("place", ["server", "home"])
def test_an_operator_ends_a_run_so_that_its_version_may_go(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    there = ["--server", server.app.grpc_address]
    where = there if place == "server" else ["--home", str(tmp_path / "home")]
    server.experiments.SetPin(
        experiments_pb2.SetPinRequest(pin=experiments_pb2.Pin(model="m", version=2, run="crashed"))
    )
    assert server.score("m", "a", run="crashed").version == 2
    server.experiments.RemovePin(experiments_pb2.RemovePinRequest(model="m", run="crashed"))
    assert main(["unload", "m@2", *there]) == 1
    assert main(["delete", "m@2", *where]) == 1
    said = capsys.readouterr().err
    assert "crashed" in said
    assert "rm-server end-run" in said
    assert main(["end-run", "nobody", *where]) == 1
    assert "'nobody' has no lease" in capsys.readouterr().err
    assert main(["end-run", "crashed", "m", *where]) == 0
    assert main(["unload", "m@2", *there]) == 0
    assert main(["delete", "m@2", *where, "--reason", "was a test"]) == 0
    assert main(["delete", "m@2", *where]) == 1
    assert "no version 2" in capsys.readouterr().err
    change = server.models.ListHistory(models_pb2.ListHistoryRequest(model="m", limit=1)).entries[0]
    assert (change.action, change.version, change.comment) == ("delete", 2, "was a test")


def test_a_model_that_there_is_not_has_no_empty_list(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (["--server", server.app.grpc_address], ["--home", str(tmp_path / "home")]):
        for command in (["runs"], ["split", "show"], ["shadow", "list"], ["models"], ["history"]):
            assert main([*command, "helpfulnes", *place]) == 1
            output = capsys.readouterr()
            assert output.out == ""
            assert "no model 'helpfulnes'" in output.err


def test_a_client_stops_or_follows_when_its_run_is_moved(server: RunningServer) -> None:
    def score(client: RewardClient, **options: Any) -> int:
        return client.score("m", prompts=["p"], completions=["abc"], **options).version

    address = server.app.grpc_address
    with (
        RewardClient(address, run="r") as stops,
        RewardClient(address, run="r", on_version_change="follow") as follows,
        RewardClient(address, run="r", on_version_change="recalibrate") as recalibrates,
        RewardClient(address, run="r") as moves,
    ):
        assert [score(client) for client in (stops, follows, moves)] == [1, 1, 1]
        with pytest.raises(NotCalibrated):
            score(recalibrates)
        server.models.SetLabel(models_pb2.SetLabelRequest(model="m", label="stable", version=2))
        assert [score(client) for client in (stops, follows, moves)] == [1, 1, 1]
        assert moves.register_run("m", move=True).version == 2
        assert [score(client) for client in (follows, moves)] == [2, 2]
        with pytest.raises(
            VersionChanged, match=r"m means m@2 .* Before, m@1 answered\. .*='follow'; to keep the old one, ask for m@1"
        ):
            score(stops)
        with pytest.raises(VersionChanged, match="was expected") as caught:
            score(stops, expected_digest="d" * 64)
        assert "Before" not in str(caught.value), "its caller knows what was expected"
        stops.end_run("m")
        assert score(stops) == 2


def test_a_client_asks_what_is_known_of_its_run(server: RunningServer) -> None:
    with RewardClient(server.app.grpc_address, run="r") as client:
        with pytest.raises(RunNotFound):
            client.run_status("m")
        values = client.score("m", prompts=["p"] * 3, completions=["a", "ab", "abcdefghijklm"]).values
        status = client.run_status("m")
        mean = sum(values) / 3
        assert (status.version, status.items, status.version_items) == (1, 3, 3)
        assert status.score_mean == pytest.approx(mean)
        assert status.score_std == pytest.approx((sum((value - mean) ** 2 for value in values) / 3) ** 0.5)
        assert [run.run for run in client.list_runs("m")] == ["r"]
