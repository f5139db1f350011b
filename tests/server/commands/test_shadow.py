"""`rm-server shadow` and `calibrate` on a home: what they print, write and refuse."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from rm_server.cli import main
from rm_server.registry.home import open_home
from rm_server.registry.records import CalibrationRecord
from rm_server.registry.shadows import ShadowPair, add_pairs


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """helpful@1, and @2, which gave 240 completions of 60 prompts twice as much, and one more."""
    path = tmp_path / "home"
    catalog, _ = open_home(path)
    for number in (1, 2):
        catalog.register("helpful", f"{number:064x}", "rules", 0, "me")
    catalog.set_calibration("helpful", 1, CalibrationRecord("a" * 64, 1.0, 0.0), "me")
    scores = np.random.default_rng(0).normal(size=240).tolist()
    add_pairs(
        catalog,
        [
            ShadowPair(
                "helpful",
                2,
                1,
                datetime(2026, 1, 1, tzinfo=UTC),
                f"run-{place % 2}",
                f"g{place // 4}",
                score,
                2 * score + 1,
                "<b>why</b>",
                f"text\n\x1b[2J {place}",
            )
            for place, score in enumerate(scores)
        ],
        1000,
    )
    catalog.close()
    return path


def run(home: Path, *arguments: str) -> int:
    return main([*arguments, "--home", str(home)])


def test_set_list_remove(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(home, "shadow", "set", "helpful", "2", "--share", "0.25", "--reason", "trial") == 0
    assert "helpful@2 scores 25 % of the calls of helpful" in capsys.readouterr().out
    assert run(home, "shadow", "list", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["model"], row["version"], row["share"]) == ("helpful", 2, 0.25)
    assert run(home, "shadow", "remove", "helpful", "2") == 0
    capsys.readouterr()
    assert run(home, "shadow", "list") == 0
    assert "No version shadows." in capsys.readouterr().out
    assert run(home, "shadow", "remove", "helpful", "2") == 1
    assert "is no shadow" in capsys.readouterr().err


def test_report_as_text_and_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(home, "shadow", "report", "helpful", "2") == 0
    text = capsys.readouterr().out
    assert "helpful@2 (shadow) against version 1: 240 completions of 60 prompts" in text
    assert "0.0% [0.0%, 6.0%]" in text
    assert "text  [2J " in text
    assert "\x1b" not in text  # the callers' texts must not command the terminal
    assert run(home, "shadow", "report", "helpful", "2", "--against", "1", "--json") == 0
    found = json.loads(capsys.readouterr().out)["agreement"]
    assert found["scale"]["value"] == pytest.approx(2.0)
    assert found["pearson"]["value"] == pytest.approx(1.0)


def test_the_page_stands_alone_and_shows_texts_as_text(home: Path, tmp_path: Path) -> None:
    page, pairs = tmp_path / "report.html", tmp_path / "pairs.jsonl"
    assert run(home, "shadow", "report", "helpful", "2", "--html", str(page), "--pairs", str(pairs)) == 0
    html = page.read_text()
    assert html.count("<svg") == 4
    assert "&lt;b&gt;why&lt;/b&gt;" in html
    assert "<script" not in html
    assert not re.search(r"(src|href)=\"?https?:", html)  # nothing is fetched
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    assert len(rows) == 240
    assert rows[3]["shadow_score"] == 2 * rows[3]["score"] + 1


def test_a_page_that_cannot_be_written_is_one_line(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(home, "shadow", "report", "helpful", "2", "--html", str(tmp_path / "nowhere" / "page.html")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"rm-server: .*/nowhere/page.html cannot be written: No such file or directory\.", line)


@pytest.mark.parametrize("option", ["--html", "--pairs"])
def test_a_file_of_nothing_is_not_left_out_without_a_word(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert run(home, "shadow", "report", "helpful", "1", "--json", option, str(tmp_path / "file")) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["num_pairs"] == 0
    assert "has not been compared yet" in printed.err


def test_what_was_never_compared_is_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(home, "shadow", "report", "helpful", "1") == 1
    assert "`rm-server shadow set` lets it shadow" in capsys.readouterr().err
    assert run(home, "shadow", "report", "helpful", "2", "--against", "2") == 1
    assert "not compared with version 2, but with 1" in capsys.readouterr().err
    assert run(home, "shadow", "report", "helpful", "9") == 1
    assert "no version 9" in capsys.readouterr().err


def test_the_pairs_need_a_home(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shadow", "report", "m", "1", "--pairs", "x", "--server", "127.0.0.1:1"]) == 1
    assert "--pairs needs --home" in capsys.readouterr().err


def test_calibrate_files_the_map_to_the_other_scale(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(home, "calibrate", "helpful", "2", "--from-shadow", "--against", "1", "--json") == 0
    filed = json.loads(capsys.readouterr().out)
    assert (filed["gain"], filed["bias"]) == (pytest.approx(0.5), pytest.approx(-0.5))
    assert run(home, "calibrate", "helpful", "1", "--from-shadow", "--against", "2") == 1
    assert "0 pairs with helpful@2" in capsys.readouterr().err
