"""Training and evaluating: options become settings, files are written, the exit says how it went."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
import tiny_models
from preference_pairs import make_pairs

from rm_server.backends.interface import ComputeSettings
from rm_server.cli import parser
from rm_server.commands.train import compute_as_trained
from rm_server.errors import InvalidRequest
from rm_server.registry.home import add_version, open_home
from rm_server.training.data_files import BadData


def run(*arguments: object) -> int:
    parsed = parser().parse_args([str(argument) for argument in arguments])
    status = parsed.run(parsed)
    assert isinstance(status, int)
    return status


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pairs(tmp_path_factory.mktemp("data") / "pairs.jsonl")


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory, pairs_file: Path) -> tuple[Path, str]:
    """A version's folder made by the command, and what the command printed."""
    folder = tmp_path_factory.mktemp("training")
    base = tiny_models.make_checkpoint(folder / "base", "bert")
    options = (
        "--epochs",
        2,
        "--learning-rate",
        3e-3,
        "--held-out-share",
        0.2,
        "--device",
        "cpu",
        "--quiet",
        "--precision",
        "auto",
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert run("train", "--data", pairs_file, "--base", base, "--out", folder / "v1", *options) == 0
    return folder / "v1", printed.getvalue()


@pytest.fixture
def trained(training: tuple[Path, str]) -> Path:
    return training[0]


def test_train_writes_a_version_with_its_evaluation(training: tuple[Path, str]) -> None:
    folder, printed = training
    assert "24 steps on 192 pairs" in printed
    assert "length-matched accuracy" in printed
    report = json.loads((folder / "evaluation.json").read_text())
    assert (report["model"], report["num_pairs"]) == ("v1", 48)
    assert report["data"]["num_trained_prompts"] == 0
    assert report["verdict"]["level"] == "good"
    assert json.loads((folder / "training.json").read_text())["settings"]["precision"] in ("fp32", "bf16")
    assert (folder / "evaluation.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("cpu", "bf16", ComputeSettings(threads=3)),
        ("mps:0", "fp32", ComputeSettings(threads=3)),
        ("cuda:0", "bf16", ComputeSettings(device="cuda:0", precision="bf16")),
        ("cuda:0", "fp32", ComputeSettings(device="cuda:0")),
    ],
)
def test_what_a_gpu_trained_it_evaluates(device: str, precision: str, expected: ComputeSettings) -> None:
    record = {"machine": {"device": device}, "settings": {"precision": precision}}
    assert compute_as_trained(record, 3) == expected


def test_evaluate_repeats_what_train_found_on_the_held_out_part(
    trained: Path, pairs_file: Path, tmp_path: Path
) -> None:
    page, figures = tmp_path / "new" / "report.html", tmp_path / "new" / "report.json"
    status = run(
        "evaluate", "--version-dir", trained, "--data", pairs_file, "--split-file",
        trained / "split.json", "--out", page, "--json", figures, "--quiet",
    )  # fmt: skip
    assert status == 0
    first, again = (json.loads(path.read_text()) for path in (trained / "evaluation.json", figures))
    first.pop("create_time")
    again.pop("create_time")
    assert first == again
    assert "</html>" in page.read_text()


def test_evaluate_says_when_prompts_were_trained_on(
    trained: Path, pairs_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("evaluate", "--version-dir", trained, "--data", pairs_file, "--json", "--quiet")
    assert json.loads(capsys.readouterr().out)["data"]["num_trained_prompts"] == 48


def test_evaluate_takes_a_plain_hugging_face_folder(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path / "plain", "roberta")
    pairs = make_pairs(tmp_path / "pairs.jsonl", 40)
    assert run("evaluate", "--version-dir", folder, "--data", pairs, "--quiet") == 0


def test_evaluate_finds_a_version_in_a_home_and_files_the_report(
    trained: Path, pairs_file: Path, tmp_path: Path
) -> None:
    catalog, artifacts = open_home(tmp_path / "home")
    record, _ = add_version(catalog, artifacts, "words", trained, actor="me")
    catalog.set_label("words", "stable", record.version, "me")
    options = ("--data", pairs_file, "--quiet", "--file")
    assert run("evaluate", "--home", tmp_path / "home", "--model", "words@stable", *options) == 0
    (filed,) = catalog.evaluations("words", 1)
    catalog.close()
    assert filed.name == "pairs"
    content = json.loads(filed.report_json)
    assert (content["model"], content["digest"]) == ("words@1", record.digest)
    assert content["data"]["num_trained_prompts"] == 48, "a version of a home knows what it was trained on"


def test_a_composite_was_trained_on_what_its_parts_were_trained_on(
    trained: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, spec = tmp_path / "home", tmp_path / "sum"
    spec.mkdir()
    words = {"name": "words", "version": "words@1", "weight": 1.0}
    brevity = {"name": "brevity", "rule": {"type": "length", "max": 9}, "weight": 0.1}
    (spec / "composite.json").write_text(json.dumps({"components": [words, brevity]}))
    for model, folder in (("words", trained), ("sum", spec)):
        assert run("register", model, folder, "--home", home, "--quiet") == 0
    capsys.readouterr()
    data = ("--data", pairs_file, "--json", "--quiet")
    assert run("evaluate", "--home", home, "--model", "sum@1", *data) == 0
    assert json.loads(capsys.readouterr().out)["data"]["num_trained_prompts"] == 48


def test_options_that_do_not_fit_are_refused(trained: Path, pairs_file: Path, tmp_path: Path) -> None:
    data = ("--data", pairs_file, "--quiet")
    with pytest.raises(InvalidRequest, match="--home needs --model"):
        run("evaluate", "--home", tmp_path / "home", *data)
    with pytest.raises(InvalidRequest, match="concern a version in --home"):
        run("evaluate", "--version-dir", trained, "--file", *data)
    split = ("--split-file", trained / "split.json", "--part", "dev")
    with pytest.raises(BadData, match="has no part 'dev'; it has held_out, train"):
        run("evaluate", "--version-dir", trained, *data, *split)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--epochs", "0"),
        ("--epochs", "many"),
        ("--learning-rate", "0"),
        ("--subset", "0"),
        ("--held-out-share", "-1"),
        ("--lora-rank", "-3"),
        ("--weight-decay", "nan"),
        ("--center-coefficient", "-1"),
        ("--checkpoint-steps", "1.5"),
    ],
)
def test_values_without_sense_are_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("train", "--data", "d", "--base", "b", "--out", "o", option, value)
    assert re.search(
        rf"{option}: '{re.escape(value)}' is not right; a .* was expected$", capsys.readouterr().err.strip()
    )


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_help_shows_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(command, "--help")
    assert f"rm-server {command} --" in capsys.readouterr().out.split("examples:")[1]
