"""`rm-server gc`, as an operator types it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rm_server import cli
from rm_server.registry.home import Home, add_version, open_home
from rm_server.registry.manifest import Manifest, write_manifest


def make_folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "rules.json").write_text(text)
    write_manifest(path, Manifest(kind="rules", transform="rule"))
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """One version, and one artifact that no version names."""
    path = tmp_path / "home"
    catalog, artifacts = open_home(path)
    add_version(catalog, artifacts, "m", make_folder(tmp_path / "kept", "kept"), actor="ann")
    artifacts.put(make_folder(tmp_path / "lost", "lost"))
    catalog.close()
    return path


def num_artifacts(home: Path) -> int:
    catalog, artifacts = open_home(home)
    catalog.close()
    return len(artifacts.digests())


def test_what_is_young_stays(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gc", "--home", str(home)]) == 0
    assert "is named by a version, or is too young" in capsys.readouterr().out
    assert num_artifacts(home) == 2


def test_it_says_what_it_would_remove_and_then_removes_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["gc", "--home", str(home), "--min-age-hours", "0"]
    assert cli.main([*command, "--dry-run"]) == 0
    assert "1 artifact, " in (said := capsys.readouterr().out)
    assert "bytes, would be removed." in said
    assert num_artifacts(home) == 2
    assert cli.main([*command, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["removed"] is True
    (removed,) = answer["artifacts"]
    assert removed["place"] == str(home / "artifacts")
    assert answer["bytes"] == removed["num_bytes"] > 0
    assert num_artifacts(home) == 1


def test_a_forgotten_catalog_is_asked_for(home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    wrong = f"sqlite:///{tmp_path}/wrong.db"
    assert cli.main(["gc", "--home", str(home), "--min-age-hours", "0", "--catalog", wrong]) == 1
    assert "--catalog, RM_CATALOG" in capsys.readouterr().err
    assert num_artifacts(home) == 2


@pytest.mark.parametrize("hours", ["-1", "nan", "soon"])
def test_ages_are_hours(home: Path, hours: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["gc", "--home", str(home), f"--min-age-hours={hours}"])
    assert f"{hours} is no number of hours from 0" in capsys.readouterr().err


# --- catalog and artifacts elsewhere: the options are every command's ---


def test_commands_work_on_a_catalog_and_artifacts_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url, artifacts_url = f"sqlite:///{tmp_path}/shared.db", f"file://{tmp_path}/shared"
    catalog, artifacts = open_home(Home(tmp_path / "a", url, artifacts_url))
    record, _ = add_version(catalog, artifacts, "m", make_folder(tmp_path / "v", "v"), actor="ann")
    catalog.close()
    (tmp_path / "b").mkdir()
    home = ["--home", str(tmp_path / "b")]
    assert cli.main(["models", *home, "--catalog", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["versions"][0]["digest"] == record.digest
    monkeypatch.setenv("RM_CATALOG", url)
    monkeypatch.setenv("RM_ARTIFACTS", artifacts_url)
    backup = tmp_path / "catalog.json"
    assert cli.main(["backup", str(backup), *home]) == 0
    assert cli.main(["restore", str(backup), *home, "--replace"]) == 0
    assert "has no files" not in capsys.readouterr().out
    assert not (tmp_path / "b" / "catalog.db").exists()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mysql://me:secret@host/db", "names no database that is known"),
        ("postgresql+psycopg://me:secret@host:port/db", "names no database that is known"),
        ("secret", "names no database that is known"),
        ("postgresql+psycopg://me:secret@127.0.0.1:1/db", r"postgresql\+psycopg://me:\*\*\*@127.0.0.1:1/db cannot be"),
    ],
)
def test_no_message_has_the_password(
    url: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RM_CATALOG", url)
    assert cli.main(["models", "--home", str(tmp_path)]) in (1, 2)
    error = capsys.readouterr().err
    assert "secret" not in error
    assert re.search(says, error)
