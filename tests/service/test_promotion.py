"""Promotion over a socket and on a home: a label moves when the gate allows it, or when somebody insists."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from rm_api.v1 import errors_pb2, experiments_pb2, models_pb2
from running_server import RunningServer, error_of, make_rules_version, running

from rm_server.cli import main
from rm_server.registry.home import open_home
from rm_server.scoring.comparison.paired_test import sign_flip_p_value

NUM_PAIRS = 40


def file_evaluation(home: Path, version: int, num_right: int, **report: Any) -> None:
    """One on pairs of as many prompts; the scores agree with people on the first ``num_right``."""
    catalog, _ = open_home(home)
    margins = {f"{i:08x}/{i:016x}": 1.0 if i < num_right else -1.0 for i in range(NUM_PAIRS)}
    content = {
        "digest": catalog.snapshot().versions["m", version].digest,
        "margins": margins,
        "accuracy": num_right / NUM_PAIRS,
        "accuracy_interval": [num_right / NUM_PAIRS - 0.15, num_right / NUM_PAIRS + 0.15],
        "verdict": {"level": "good", "headline": "The scores agree with people."},
        **report,
    }
    catalog.file_evaluation("m", version, "held_out", json.dumps(content), "ann")
    catalog.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """m@1 is stable, right on 30 of 40 pairs; m@2 (on 38) and m@3 (on 12) are not loaded; m@4 has no evaluation."""
    with running(tmp_path / "home") as server:
        for longest in (5, 6, 7, 8):
            folder = make_rules_version(tmp_path / f"v{longest}", {"type": "length", "unit": "words", "max": longest})
            server.models.RegisterVersion(models_pb2.RegisterVersionRequest(model="m", path=str(folder)))
        server.models.SetLabel(models_pb2.SetLabelRequest(model="m", label="stable", version=1, load=True))
        for version, num_right in ((1, 30), (2, 38), (3, 12)):
            file_evaluation(tmp_path / "home", version, num_right)
        yield server


def promote(server: RunningServer, version: int, **request: Any) -> models_pb2.PromoteVersionResponse:
    return server.models.PromoteVersion(models_pb2.PromoteVersionRequest(model="m", version=version, **request))


def stable(server: RunningServer) -> int:
    (model,) = server.models.ListModels(models_pb2.ListModelsRequest(model="m")).models
    return int(model.labels["stable"])


def last_change(server: RunningServer) -> models_pb2.HistoryEntry:
    return server.models.ListHistory(models_pb2.ListHistoryRequest(model="m", limit=1)).entries[0]


def test_a_better_version_is_loaded_and_promoted(server: RunningServer) -> None:
    answer = promote(server, 2, comment="more data")
    assert (answer.allowed, answer.promoted, answer.previous_version) == (True, True, 1)
    assert answer.version.state == models_pb2.VERSION_STATE_READY
    assert list(answer.version.labels) == ["stable"]
    assert any("better beyond chance" in finding for finding in answer.findings)
    assert server.score("m@stable", "six words are just long enough").version == 2
    change = last_change(server)
    assert (change.action, change.version, change.comment) == ("promote", 2, "more data")
    assert change.detail == "stable: 1 → 2; the gate allowed it"


def test_a_worse_version_is_refused_with_reasons_and_nothing_moves(server: RunningServer) -> None:
    code, error = error_of(lambda: promote(server, 3))
    assert (code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, errors_pb2.ERROR_REASON_PROMOTION_REFUSED)
    assert "worse beyond chance" in error.message
    assert f"p = {sign_flip_p_value([-1] * 18):.2g}" in error.message
    assert stable(server) == 1
    assert last_change(server).action == "file_evaluation"
    version = server.models.GetVersion(models_pb2.GetVersionRequest(selector="m@3")).version
    assert version.state == models_pb2.VERSION_STATE_REGISTERED


def test_a_version_without_an_evaluation_is_refused(server: RunningServer) -> None:
    _, error = error_of(lambda: promote(server, 4))
    assert error.reason == errors_pb2.ERROR_REASON_PROMOTION_REFUSED
    assert "rm-server evaluate" in error.message


def test_a_dry_run_says_what_it_would_do(server: RunningServer) -> None:
    for version, allowed in ((2, True), (3, False)):
        answer = promote(server, version, dry_run=True)
        assert (answer.allowed, answer.promoted, answer.previous_version) == (allowed, False, 1)
        assert answer.findings[0].startswith("Objection: ") is not allowed
    assert stable(server) == 1


def test_force_needs_a_reason_and_leaves_the_objections_in_the_history(server: RunningServer) -> None:
    code, error = error_of(lambda: promote(server, 3, force=True, comment=" "))
    assert (code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, errors_pb2.ERROR_REASON_INVALID_ARGUMENT)
    assert stable(server) == 1
    answer = promote(server, 3, force=True, comment="the pairs are wrong")
    assert (answer.allowed, answer.promoted) == (False, True)
    assert stable(server) == 3
    change = last_change(server)
    assert (change.action, change.comment) == ("promote", "the pairs are wrong")
    assert change.detail.startswith("stable: 1 → 3; forced, although: ")
    assert "worse beyond chance" in change.detail


def test_a_new_label_and_one_that_is_there_already(server: RunningServer) -> None:
    answer = promote(server, 2, label="canary")
    assert (answer.promoted, answer.previous_version) == (True, 0)
    again = promote(server, 2, label="canary")
    assert (again.allowed, again.promoted, again.previous_version) == (True, False, 2)
    _, error = error_of(lambda: promote(server, 3, label="nightly"))
    assert "more often than chance" in error.message


def test_a_promotion_is_rolled_back_like_any_move(server: RunningServer) -> None:
    promote(server, 2)
    server.models.RollbackLabel(models_pb2.RollbackLabelRequest(model="m"))
    assert stable(server) == 1


def test_what_is_not_there_is_said(server: RunningServer) -> None:
    _, error = error_of(lambda: promote(server, 9))
    assert error.reason == errors_pb2.ERROR_REASON_VERSION_NOT_FOUND
    _, error = error_of(lambda: promote(server, 2, label="7"))
    assert error.reason == errors_pb2.ERROR_REASON_INVALID_ARGUMENT


def test_the_shadow_is_looked_at_up_to_its_last_pair(server: RunningServer) -> None:
    shadow = experiments_pb2.Shadow(model="m", version=2, share=1.0)
    server.experiments.SetShadow(experiments_pb2.SetShadowRequest(shadow=shadow, load=True))
    server.score("m@stable", "one two", "one two three four five six seven")
    while server.metric("rm_shadow_items_total", model="m", version="2", outcome="ok") < 2:
        server.score("m@stable", "other words")  # no more than a few: the shadow is idle
    findings = promote(server, 2, dry_run=True).findings
    assert any("As a shadow of version 1" in finding and "Too few to object to" in finding for finding in findings)


@pytest.mark.parametrize("place", ["server", "home"])
def test_the_command(server: RunningServer, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--server", server.app.grpc_address] if place == "server" else ["--home", str(server.settings.home)]
    assert main(["promote", "m", "3", "--dry-run", *where]) == 1
    output = capsys.readouterr().out
    assert output.startswith("- Objection: On 'held_out', 40 pairs of 40 prompts: worse beyond chance.")
    assert output.endswith("m@stable would not move to 3.\n")
    assert main(["promote", "m", "3", *where]) == 1
    assert "worse beyond chance" in capsys.readouterr().err
    assert main(["promote", "m", "2", "--reason", "more data", "--json", *where]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["previous_version"], answer["allowed"], answer["promoted"]) == (1, True, True)
    assert main(["promote", "m", "3", "--force", "--reason", "insisted", *where]) == 0
    assert capsys.readouterr().out.endswith("m@stable names 3; it named 2 before.\n")
    catalog, _ = open_home(server.settings.home)
    record = next(record for record in catalog.history("m") if record.action == "promote")
    assert (record.version, record.previous_version, record.comment) == (3, 2, "insisted")
    catalog.close()
    with pytest.raises(SystemExit, match="2"):
        main(["promote", "m", "3", "--force", *where])
