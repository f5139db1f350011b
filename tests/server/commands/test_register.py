"""`rm-server register`: what it prints, and what it passes on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from rm_server import cli
from rm_server.api.admin import Admin
from rm_server.registry.home import open_home

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()  # what the fixtures' libraries said
        try:
            status = cli.main(["register", *map(str, arguments)])
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        output = capsys.readouterr()
        return status, output.out, output.err

    return run


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_models.make_checkpoint(tmp_path / "checkpoint", "qwen2")


def test_help_has_examples(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    assert re.search(r"examples: rm-server register ", " ".join(out.split()))


def test_a_folder_is_registered_and_the_digest_told(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"{number} " * number}) + "\n" for number in range(1, 20)))
    (tmp_path / "report.json").write_text("{}")
    home = tmp_path / "home"
    status, out, _ = run(
        *("m", checkpoint, "--home", home, "--quiet", "--max-tokens", 100, "--no-append-eos", "--comment", "why"),
        *("--golden-data", texts, "--reference-data", texts, "--evaluation", tmp_path / "report.json"),
    )
    assert status == 0
    catalog, _ = open_home(home)
    record = catalog.snapshot().versions["m", 1]
    catalog.close()
    lines = out.splitlines()
    assert lines[0] == f"m@1 ({record.digest[:12]}) is registered."
    assert "up to 100 tokens, refuse" in lines[1]
    assert "EOS" not in lines[1]
    assert "16 examples" in lines[2]
    assert "standardise on 19 texts" in lines[3]
    assert lines[4].split() == ["filed", "report"]
    assert lines[5] == f"  home       {home}, made for it"
    assert record.comment == "why"
    assert record.calibration is not None


def test_the_label_that_scores_is_told(run: Run, tmp_path: Path) -> None:
    names, home = {0: "bad", 1: "good"}, tmp_path / "home"
    home.mkdir()
    source = tiny_models.make_checkpoint(
        tmp_path / "checkpoint", "bert", num_labels=2, id2label=names, label2id={"bad": 0, "good": 1}
    )
    status, out, _ = run("m", source, "--home", home, "--quiet", "--label-index", "good")
    assert status == 0
    assert "  score      the logit of label 1 good\n" in out
    assert "made for it" not in out


def test_what_follows_each_text_is_told_with_the_flag_that_changes_it(
    run: Run, checkpoint: Path, tmp_path: Path
) -> None:
    _, out, _ = run("m", checkpoint, "--home", tmp_path / "home", "--quiet")
    assert out.splitlines()[1].endswith(", EOS appended (if it was trained without: --no-append-eos)")


def test_a_composite_s_parts_read_by_their_own_rules(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "sum"
    source.mkdir()
    part = {"name": "brevity", "rule": {"type": "length", "max": 80}, "weight": 1.0}
    (source / "composite.json").write_text(json.dumps({"components": [part]}))
    status, out, err = run("m", source, "--home", tmp_path / "home", "--quiet")
    assert status == 0, err
    assert out.splitlines()[1].split(maxsplit=1) == ["reads", "as each of its parts does"]


def test_what_has_nothing_to_tune_is_registered_all_the_same(run: Run, tmp_path: Path) -> None:
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "rules.json").write_text('{"rules": [{"type": "length", "max": 80}]}')
    status, out, err = run("m", tmp_path / "rules", "--home", tmp_path / "home", "--quiet", "--tune", "--json")
    assert (status, json.loads(out)["version"]) == (0, 1)
    assert "--tune: a version of the kind rules leaves nothing to choose" in err


def test_programs_get_json_and_see_that_nothing_is_new(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    arguments = ("m", checkpoint, "--home", tmp_path / "home", "--quiet", "--json")
    first, second = json.loads(run(*arguments)[1]), json.loads(run(*arguments)[1])
    assert (first["model"], first["version"], first["created"], first["evaluations"]) == ("m", 1, True, [])
    assert second == {**first, "created": False}
    assert run(*arguments[:-1])[1].startswith("m@1 (")


def test_a_refusal_is_one_line_and_a_status(run: Run, tmp_path: Path) -> None:
    status, out, err = run("m", tmp_path / "nowhere", "--home", tmp_path / "home")
    assert (status, out) == (1, "")
    assert err.startswith("rm-server: ")
    assert "is no folder" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "home").exists()


def test_a_server_is_asked_for_the_folder_as_it_is(run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def register(_: Admin, *arguments: Any) -> tuple[dict[str, Any], bool]:
        asked.append(arguments)
        return {"model": "m", "version": 3, "digest": "a" * 64}, True

    monkeypatch.setattr(Admin, "register", register)
    status, out, _ = run("m", checkpoint, "--server", "127.0.0.1:1", "--comment", "why")
    assert (status, out) == (0, "m@3 (aaaaaaaaaaaa) is registered.\n")
    assert json.loads(run("m", checkpoint, "--server", "127.0.0.1:1", "--json")[1])["created"] is True
    assert asked == [("m", checkpoint, "why"), ("m", checkpoint, "")]


@pytest.mark.parametrize("option", [("--template", "{completion}"), ("--append-eos",), ("--match", "m@1")])
def test_what_a_server_does_not_do_is_refused(run: Run, checkpoint: Path, option: tuple[str, ...]) -> None:
    status, _, err = run("m", checkpoint, "--server", "127.0.0.1:1", *option)
    assert status == 1
    assert err.startswith(f"rm-server: {option[0]}: a server takes a folder as it is")


def test_home_and_server_are_not_both(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    status, _, err = run("m", checkpoint, "--server", "127.0.0.1:1", "--home", tmp_path / "home")
    assert status == 1
    assert "both given" in err
