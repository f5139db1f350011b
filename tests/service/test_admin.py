"""The commands against a running server: what they print, and what they say when it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rm_api.v1 import models_pb2
from running_server import RunningServer, make_version
from waiting import wait_until

from rm_server import cli
from rm_server.api import model_service
from rm_server.api.admin import Admin, AdminError
from rm_server.registry.home import add_version, open_home


class Shell:
    """Runs commands against a server."""

    def __init__(self, server: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
        self._server = server
        self._capsys = capsys

    def __call__(self, *arguments: object, status: int = 0) -> str:
        """What a command printed; on stderr where it failed."""
        target = ("--server", self._server.app.grpc_address)
        got = cli.main([str(argument) for argument in (*arguments, *target)])
        output = self._capsys.readouterr()
        assert got == status, output.err
        return output.out if status == 0 else output.err

    def json(self, *arguments: object) -> Any:
        return json.loads(self(*arguments, "--json"))


@pytest.fixture
def shell(server: RunningServer, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(server, capsys)


def test_a_version_s_way_from_registered_to_served_and_back(
    shell: Shell, server: RunningServer, tmp_path: Path
) -> None:
    folders = [make_version(tmp_path / str(seed), seed) for seed in (21, 22)]
    server.deploy("polite", *folders, label=None)
    assert shell("unload", "polite@2").startswith("polite@2 (")
    assert shell("label", "polite", "stable", 1, "--comment", "first") == (
        "polite@stable names 1; it named nothing before.\n"
    )
    moved = shell("label", "polite", "stable", 2, "--load", "--unload-previous", "--comment", "better")
    assert moved == "polite@stable names 2; it named 1 before.\n"
    (model,) = shell.json("models", "polite")
    assert model["labels"] == {"stable": 2}
    assert [version["state"] for version in model["versions"]] == ["registered", "ready"]
    assert model["versions"][1]["precision"] == "fp32"
    assert model["versions"][1]["memory_bytes"] > 0
    assert "is named by the label stable" in shell("unload", "polite@stable", status=1)
    assert "serves; it takes" in shell("load", "polite@1", "--precision", "fp32")
    assert shell("label", "polite", "stable", "--remove") == "polite@stable is removed; it named 2.\n"
    history = shell.json("history", "polite")
    assert [(change["action"], change["comment"]) for change in history if change["comment"]] == [
        ("set_label", "better"),
        ("load", "better"),
        ("set_label", "first"),
    ]
    assert history[0]["action"] == "remove_label"


def test_a_label_goes_back_on_a_running_server(shell: Shell, server: RunningServer, tmp_path: Path) -> None:
    server.deploy("regretted", *[make_version(tmp_path / str(seed), seed) for seed in (25, 26)])
    shell("label", "regretted", "stable", 2, "--unload-previous")
    assert shell("rollback", "regretted", "--comment", "too kind") == ("regretted@stable names 1 again; it named 2.\n")
    assert server.score("regretted@stable", "a").version == 1
    change = shell.json("history", "regretted", "--limit", 1)[0]
    assert (change["action"], change["version"], change["comment"]) == ("rollback", 1, "too kind")
    assert change["actor"]
    assert "no earlier version" in shell("rollback", "regretted", status=1)
    assert "no label 'canary'" in shell("rollback", "regretted", "--label", "canary", status=1)


def test_what_another_process_registers_can_be_loaded_at_once(
    shell: Shell, server: RunningServer, tmp_path: Path
) -> None:
    """As `rm-server register --home` does, while the server looks into the catalog only now and then."""
    catalog, artifacts = open_home(server.settings.home)
    add_version(catalog, artifacts, "from-outside", make_version(tmp_path / "v", 31), actor="ann")
    assert "from-outside@1" in shell("load", "from-outside@1")
    add_version(catalog, artifacts, "from-outside", make_version(tmp_path / "w", 32), actor="ann")
    shell("label", "from-outside", "stable", 2, "--load")
    catalog.close()
    assert server.score("from-outside", "a").version == 2


def test_a_label_that_another_process_moves_is_followed(server: RunningServer, tmp_path: Path) -> None:
    """The label goes on naming the old version until the new one is loaded here: nobody's call fails."""
    folders = [make_version(tmp_path / str(seed), seed) for seed in (41, 42)]
    server.deploy("followed", folders[0])
    catalog, artifacts = open_home(server.settings.home)
    add_version(catalog, artifacts, "followed", folders[1], actor="ann")
    catalog.close()
    assert cli.main(["label", "followed", "stable", "2", "--home", str(server.settings.home)]) == 0
    wait_until(lambda: server.score("followed", "a").version == 2)


def test_tables_are_for_people(shell: Shell, server: RunningServer) -> None:
    server.score("helpfulness", "a", run="exp-17")
    models = shell("models", "helpfulness").splitlines()
    assert models[0].split()[:6] == ["MODEL", "VERSION", "DIGEST", "KIND", "STATE", "LABELS"]
    assert [line.split()[:2] for line in models[1:]] == [["helpfulness", "1"], ["helpfulness", "2"]]
    assert "stable" in models[1]
    assert "exp-17" in shell("runs", "helpfulness")
    assert "scored items" in shell("status")
    assert shell("history", "helpfulness", "--limit", 1).splitlines()[0].startswith("TIME")


def test_status_and_runs_as_json(shell: Shell, server: RunningServer) -> None:
    server.score("helpfulness", "a", "b", run="exp-18")
    status = shell.json("status")
    assert (status["device"], status["draining"]) == ("cpu", False)
    assert status["scored_items"] >= 2
    (run,) = [run for run in shell.json("runs") if run["run"] == "exp-18"]
    assert (run["model"], run["version"], run["items"]) == ("helpfulness", 1, 2)
    assert run["lease_version"] == 1
    assert run["lease_expire_time"].endswith("Z")


def test_a_run_whose_lease_is_on_another_version_than_scored_it_last_is_shown_with_both(
    shell: Shell, server: RunningServer
) -> None:
    server.score("helpfulness", "a", run="exp-19")
    server.score("helpfulness@2", "a", run="exp-19")
    (run,) = [run for run in shell.json("runs") if run["run"] == "exp-19"]
    assert (run["version"], run["lease_version"]) == (2, 1)
    (line,) = [line for line in shell("runs").splitlines() if line.startswith("exp-19")]
    assert line.endswith("Z, on version 1")
    shell("end-run", "exp-19")
    (line,) = [line for line in shell("runs").splitlines() if line.startswith("exp-19")]
    assert line.endswith("Z")


def test_a_server_gives_no_more_history_than_it_says(
    shell: Shell, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(shell.json("history", "--limit", 4)) == 4
    monkeypatch.setattr(model_service, "MAX_HISTORY", 3)
    assert len(shell.json("history", "--limit", 4)) == 3
    assert len(shell.json("history", "--limit", 2)) == 2
    for limit in (0, 2**32 - 1):
        assert len(server.models.ListHistory(models_pb2.ListHistoryRequest(limit=limit)).entries) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("load", "nonsense@1"), "no model 'nonsense'"),
        (("label", "helpfulness", "stable", "9"), "no version 9"),
        (("models", "nonsense"), "no model 'nonsense'"),
        (("watch", "nonsense"), "no model 'nonsense'"),
    ],
)
def test_a_refusal_is_the_server_s_own_line(shell: Shell, arguments: tuple[str, ...], message: str) -> None:
    text = shell(*arguments, status=1)
    assert text.startswith("rm-server: ")
    assert message in text
    assert len(text.splitlines()) == 1


def test_the_http_proxy_is_not_asked_for_this_machine_and_is_named_where_it_is(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    with Admin(server.app.grpc_address) as admin:
        assert admin.models()
    with Admin("192.0.2.1:50051") as admin, pytest.raises(AdminError, match="https_proxy is set"):
        admin.models()


def test_reports_take_as_long_as_they_take(server: RunningServer) -> None:
    with Admin(server.app.grpc_address, timeout_s=0.0001) as admin:
        with pytest.raises(AdminError, match="has not answered within"):
            admin.status()
        assert admin.shadow_report("helpfulness", 2)["shadow_version"] == 2
        assert admin.experiment_evidence("helpfulness").model == "helpfulness"


def test_watch_prints_the_state_until_the_server_stops(tmp_path: Path, versions: list[Path]) -> None:
    server = RunningServer(tmp_path).start()
    server.deploy("helpfulness", versions[0])
    command = [sys.executable, "-m", "rm_server.cli", "watch", "--json", "--server", server.app.grpc_address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        change = json.loads(watch.stdout.readline())
        stopping = server.stopping()
        _, told = watch.communicate(timeout=60)
    stopping.join()
    assert (change["change"], change["model"]["labels"]) == ("initial", {"stable": 1})
    assert "shutting down" in told
    assert watch.returncode == 1
