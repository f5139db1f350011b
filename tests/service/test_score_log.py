"""A server's score log, from the call to `rm-server scores`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from running_server import RunningServer, running

from rm_server.cli import main
from rm_server.config import ConfigError, ScoreLogSettings


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, versions: list[Path]) -> tuple[Path, dict[str, list[float]]]:
    """A home where two runs scored, by version 1 and by version 2, and the scores that they were given."""
    home = tmp_path_factory.mktemp("home")
    with running(home, score_log=ScoreLogSettings(path=Path("scores"))) as server:
        server.deploy("helpfulness", *versions[:2])
        given = {
            "one": _score(server, "helpfulness@stable", "one"),
            "two": _score(server, "helpfulness@2", "two"),
        }
        server.score("helpfulness", "", run="one")  # an item that fails
        assert not (home / "scores").exists()  # nothing is full yet
    assert server.metric("rm_score_log_items_total", outcome="written") == 41
    return home, given


def _score(server: RunningServer, selector: str, run: str) -> list[float]:
    answer = server.score(selector, *(f"text {i} " * (i + 1) for i in range(20)), run=run, request_id=f"of-{run}")
    return [result.score.value for result in answer.results]


def test_what_was_answered_is_in_the_log_when_the_server_ends(
    home: tuple[Path, dict[str, list[float]]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, given = home
    assert main(["scores", "--home", str(folder), "--json", "--limit", "100"]) == 0
    found = json.loads(capsys.readouterr().out)
    for run, version in (("one", 1), ("two", 2)):
        rows = [row for row in found["rows"] if row["run"] == run and "score" in row]
        assert [row["score"] for row in rows] == given[run]
        assert {(row["version"], row["request_id"]) for row in rows} == {(version, f"of-{run}")}
        assert all("completion" not in row for row in rows)
    (failed,) = [row for row in found["rows"] if "score" not in row]
    assert failed["error"] == "empty_item"
    first, second = found["summary"]
    assert (first["version"], first["scores"], first["errors"]) == (1, 20, 1)
    assert second["mean"] == pytest.approx(sum(given["two"]) / 20)
    assert second["quantiles"]["0.5"] == pytest.approx(sorted(given["two"])[9] / 2 + sorted(given["two"])[10] / 2)


def test_rows_are_chosen_and_written(
    home: tuple[Path, dict[str, list[float]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, given = home
    where = [str(folder / "scores")]
    assert main(["scores", *where, "--run", "two", "--limit", "3", "--out", str(tmp_path / "rows.jsonl")]) == 0
    output = capsys.readouterr().out.splitlines()
    assert len(output) == 1 + 3 + 1 + 2  # the newest rows, an empty line, the summary
    written = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["score"] for row in written] == given["two"]
    for nothing in (["--model", "other"], ["--since", "0s"], ["--since", "2999-01-01"]):
        assert main(["scores", *where, *nothing]) == 0
        assert "No row" in capsys.readouterr().out
    assert main(["scores", *where, "--since", "1d", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 20


def test_what_cannot_be_read_is_said(
    home: tuple[Path, dict[str, list[float]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scores", str(tmp_path)]) == 1
    assert "has no score log" in capsys.readouterr().err
    (tmp_path / "scores-broken.parquet").write_bytes(b"nothing of the kind")
    assert main(["scores", str(tmp_path)]) == 1
    assert "cannot be read" in capsys.readouterr().err
    for when in ("yesterday", "1000000d"):
        with pytest.raises(SystemExit, match="2"):
            main(["scores", str(home[0] / "scores"), "--since", when])


def test_without_pyarrow_the_server_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with (
        pytest.raises(ConfigError, match=r"pip install 'rm-service\[parquet\]'"),
        running(tmp_path / "home", score_log=ScoreLogSettings(path=tmp_path)),
    ):
        pass


def test_without_a_path_there_is_no_log(tmp_path: Path, versions: list[Path]) -> None:
    with running(tmp_path / "home") as server:
        server.deploy("helpfulness", versions[0])
        server.score("helpfulness", "text")
    assert not list(tmp_path.rglob("scores*"))


def test_a_single_score_has_no_spread(tmp_path: Path, versions: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    with running(tmp_path, score_log=ScoreLogSettings(path=Path("scores"))) as server:
        server.deploy("helpfulness", versions[0])
        server.score("helpfulness", "a text")
    assert main(["scores", "--home", str(tmp_path)]) == 0
    head, row = (line.split() for line in capsys.readouterr().out.splitlines()[-2:])
    assert dict(zip(head, row, strict=True))["STD"] == "-"
    assert main(["scores", "--home", str(tmp_path), "--json"]) == 0
    (summary,) = json.loads(capsys.readouterr().out)["summary"]
    assert "mean" in summary
    assert "std" not in summary
