"""Rollback, backup and restore of a home, as an operator types them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rm_server import cli
from rm_server.registry.home import open_home


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two versions of helpfulness; stable named 1 and names 2."""
    path = tmp_path / "home"
    catalog, _ = open_home(path)
    for digit in "ab":
        catalog.register("helpfulness", digit * 64, "rules", 0, "ann", "")
    catalog.set_label("helpfulness", "stable", 1, "ann")
    catalog.set_label("helpfulness", "stable", 2, "ann")
    catalog.close()
    return path


def stable_of(home: Path) -> int:
    catalog, _ = open_home(home)
    version = catalog.snapshot().labels["helpfulness", "stable"]
    catalog.close()
    return version


def test_a_label_goes_back_and_the_history_says_why(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rollback", "helpfulness", "--home", str(home), "--comment", "too kind"]) == 0
    assert capsys.readouterr().out == "helpfulness@stable names 1 again; it named 2.\n"
    assert stable_of(home) == 1
    catalog, _ = open_home(home)
    assert catalog.history("helpfulness", 1)[0].comment == "too kind"
    catalog.close()


@pytest.mark.parametrize("command", [["label", "helpfulness", "my best", "1"], ["promote", "helpfulness", "1"]])
def test_a_label_of_no_right_name_changes_nothing(
    command: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label = ["--label", "my best", "--dry-run"] if command[0] == "promote" else []
    assert cli.main([*command, *label, "--home", str(home)]) == 1
    assert "'my best' cannot be a label" in capsys.readouterr().err
    catalog, _ = open_home(home)
    assert not catalog.snapshot().wanted
    catalog.close()


def test_there_is_a_first_version(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rollback", "helpfulness", "--home", str(home)]) == 0
    assert cli.main(["rollback", "helpfulness", "--home", str(home)]) == 1
    assert "no earlier version" in capsys.readouterr().err


def test_a_catalog_comes_back(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "catalog.json"
    assert cli.main(["backup", str(file), "--home", str(home)]) == 0
    assert cli.main(["rollback", "helpfulness", "--home", str(home)]) == 0
    assert cli.main(["restore", str(file), "--home", str(home)]) == 1, "what is there is not overwritten unasked"
    assert stable_of(home) == 1
    assert cli.main(["restore", str(file), "--home", str(home), "--replace"]) == 0
    assert stable_of(home) == 2
    assert "helpfulness@1 has no files" in capsys.readouterr().out


def test_a_catalog_comes_back_on_a_new_machine(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, new = tmp_path / "catalog.json", tmp_path / "disks" / "new"
    assert cli.main(["backup", str(file), "--home", str(home)]) == 0
    assert cli.main(["restore", str(tmp_path / "nothing.json"), "--home", str(new)]) == 1
    assert "is no file" in capsys.readouterr().err
    assert not new.exists()
    assert cli.main(["restore", str(file), "--home", str(new)]) == 0
    assert stable_of(new) == stable_of(home) == 2


@pytest.mark.parametrize("command", [["rollback", "m"], ["backup", "f"]])
def test_a_wrong_folder_is_said(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command, "--home", str(tmp_path / "nowhere")]) == 1
    assert "is no folder" in capsys.readouterr().err
