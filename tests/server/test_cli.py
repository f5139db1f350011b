"""The commands: help with an example, one clear line and a status for a failure, a home without a server."""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rm_server import cli
from rm_server.commands import train
from rm_server.registry.home import open_home


def parsers(parser: argparse.ArgumentParser, *words: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """All commands, and the actions of those that have some: ``split pin``."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if words and not groups:
        yield " ".join(words), parser
    for group in groups:
        for name, child in group.choices.items():
            yield from parsers(child, *words, name)


COMMANDS = dict(parsers(cli.parser()))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A catalog with two versions of helpfulness, of which stable names the first, and one of harmless."""
    path = tmp_path / "home"
    catalog, _ = open_home(path)
    for model, digit in (("helpfulness", "a"), ("helpfulness", "b"), ("harmless", "c")):
        catalog.register(model, digit * 64, "rules", 0, "ann", f"made of {digit}")
    catalog.set_label("helpfulness", "stable", 1, "ann")
    catalog.set_wanted("helpfulness", 1, True, "ann")
    catalog.close()
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    try:
        status = cli.main([str(argument) for argument in arguments])
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    output = capsys.readouterr()
    return status, output.out, output.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    status, out, _ = run(capsys, *command.split(), "--help")
    assert status == 0
    assert re.search(rf"^examples?:(\n  .*)*\n  rm-server {command} .*\S$", out, re.MULTILINE)


@pytest.mark.parametrize("group", ["", *sorted({command.split()[0] for command in COMMANDS if " " in command})])
def test_help_of_several_commands_has_examples_of_them(capsys: pytest.CaptureFixture[str], group: str) -> None:
    status, out, _ = run(capsys, *group.split(), "--help")
    assert status == 0
    assert re.search(rf"^examples:\n  rm-server {group} ?\w", out, re.MULTILINE)


def test_the_list_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "--help")
    assert len(COMMANDS) > 30
    assert all(re.search(rf"^    {command.split()[0]}\b", out, re.MULTILINE) for command in COMMANDS)


def test_what_changes_something_asks_for_a_reason_and_what_prints_a_table_has_json() -> None:
    options = {command: set(parser._option_string_actions) for command, parser in COMMANDS.items()}
    assert {command for command, names in options.items() if "--reason" in names} == {
        *("register", "load", "unload", "delete", "label", "promote", "rollback", "restore", "export", "tune"),
        "calibrate",
        *("split set", "split remove", "split pin", "split unpin", "shadow set", "shadow remove"),
    }
    assert {command for command, names in options.items() if "--json" in names} >= {
        *("models", "history", "status", "runs", "watch", "scores", "gc", "explain", "promote", "token list"),
        *("split show", "shadow list", "shadow report", "experiment outcomes", "experiment report"),
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ("history", "--limit", "-3"),
        ("history", "--limit", "99999999999999999999999"),
        ("label", "m", "stable", "0"),
        ("promote", "m", "99999999999"),
        ("promote", "m", "-1"),
        ("shadow", "set", "m", "²"),
        ("split", "pin", "m", "exp-1", "1.5"),
        ("experiment", "outcome", "exp-1", "m", "win_rate", "0.5", "--step", "-4"),
        ("experiment", "report", "m", "--last", "0"),
        ("scores", "--limit", "0"),
        ("delete", "m@stable"),
        ("delete", "m"),
    ],
)
def test_a_number_out_of_range_is_refused_before_anybody_is_asked(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    status, out, err = run(capsys, *arguments, *(("--home", "nowhere")))
    assert (status, out) == (2, "")
    assert "was expected" in err.splitlines()[-1]


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("load",), ("label", "m", "stable"), ("serve", "--set", "x")])
def test_wrong_usage_is_status_2(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("usage: rm-server")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--home", "h", "--set", "engine.max_batch_token=1"), "did you mean engine.max_batch_tokens?"),
        (("--home", "h", "--workers", "many"), "engine.workers (from --engine.workers) is 'many'"),
        (("--home", "h", "--listen", "0.0.0.0:1"), "needs TLS"),
        (("--home", "h", "--config", "nowhere.toml"), "nowhere.toml cannot be read"),
        ((), "home is not set"),
    ],
)
def test_wrong_settings_are_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    status, out, err = run(capsys, "serve", *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_models_of_a_home_as_a_table(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    status, out, _ = run(capsys, "models", "--home", home)
    header, *rows = out.splitlines()
    assert status == 0
    assert header.split() == [
        "MODEL",
        "VERSION",
        "DIGEST",
        "KIND",
        "STATE",
        "LABELS",
        "MEMORY",
        "REGISTERED",
        "BY",
        "COMMENT",
    ]
    assert [row.split()[:5] for row in rows] == [
        ["harmless", "1", "c" * 12, "rules", "registered"],
        ["helpfulness", "1", "a" * 12, "rules", "wanted"],
        ["helpfulness", "2", "b" * 12, "rules", "registered"],
    ]
    assert "stable" in rows[1]


def test_models_of_a_home_as_json(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    status, out, _ = run(capsys, "models", "helpfulness", "--home", home, "--json")
    (model,) = json.loads(out)
    assert status == 0
    assert model["labels"] == {"stable": 1}
    assert [version["digest"] for version in model["versions"]] == ["a" * 64, "b" * 64]
    assert model["versions"][0]["create_time"].endswith("Z")


def test_a_label_of_a_home_moves_and_its_version_is_wanted(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    move = ("label", "helpfulness", "stable", 2, "--home", home, "--unload-previous", "--comment", "better")
    status, out, _ = run(capsys, *move)
    assert (status, out) == (0, "helpfulness@stable names 2; it named 1 before.\n")
    catalog, _ = open_home(home)
    snapshot = catalog.snapshot()
    catalog.close()
    assert snapshot.labels["helpfulness", "stable"] == 2
    assert snapshot.wanted == {("helpfulness", 2)}
    _, out, _ = run(capsys, "history", "helpfulness", "--home", home, "--json", "--limit", 3)
    assert [(change["action"], change["comment"]) for change in json.loads(out)] == [
        ("unload", "better"),
        ("set_label", "better"),
        ("load", "better"),
    ]


def test_a_comment_of_several_lines_is_one_row_of_the_table(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    run(capsys, "label", "helpfulness", "stable", 2, "--home", home, "--comment", "better\nby far\x1b[31m")
    _, out, _ = run(capsys, "history", "helpfulness", "--home", home, "--limit", 1)
    assert len(out.splitlines()) == 2
    assert "better by far [31m" in out


def test_what_another_label_names_stays_wanted(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    run(capsys, "label", "helpfulness", "canary", 1, "--home", home)
    run(capsys, "label", "helpfulness", "stable", 2, "--home", home, "--unload-previous")
    catalog, _ = open_home(home)
    wanted = catalog.snapshot().wanted
    catalog.close()
    assert wanted == {("helpfulness", 1), ("helpfulness", 2)}


def test_a_label_of_a_home_is_removed(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    status, out, _ = run(capsys, "label", "helpfulness", "stable", "--remove", "--home", home)
    assert (status, out) == (0, "helpfulness@stable is removed; it named 1.\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("models", "nonsense"), "no model 'nonsense'; it has harmless, helpfulness"),
        (("label", "helpfulness", "stable", "9"), "9"),
        (("label", "helpfulness", "canary", "--remove"), "canary"),
        (("history", "nonsense"), "nonsense"),
        (("split", "pin", "helpfulness", "my run", "1"), "'my run'"),
        (("split", "set", "helpfulness", "a=1:1", "--ramp", "a=1@0001-01-01T00:00+14:00"), "NAME=WEIGHT@TIME was"),
        (("models", "--server", "127.0.0.1:1"), "--home and --server are both given"),
        (("runs", "--server", "127.0.0.1:1"), "--home and --server are both given"),
        (("experiment", "outcomes", "helpfulness", "--server", "127.0.0.1:1"), "--home and --server are both given"),
    ],
)
def test_a_refusal_is_one_line_and_status_1(
    capsys: pytest.CaptureFixture[str], home: Path, arguments: tuple[str, ...], message: str
) -> None:
    status, out, err = run(capsys, *arguments, "--home", home)
    assert (status, out) == (1, "")
    assert message in err
    assert err.startswith("rm-server: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("command", [("models",), ("evaluate", "--model", "m@1", "--data", "pairs.jsonl")])
def test_a_home_that_is_not_there_is_not_made(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}')
    status, _, err = run(capsys, *command, "--home", tmp_path / "nowhere")
    assert status == 1
    assert "nowhere is no folder" in err
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("target", ["home", "server"])
def test_what_is_no_text_is_wrong_usage(capsys: pytest.CaptureFixture[str], home: Path, target: str) -> None:
    where = ("--home", home) if target == "home" else ("--server", "127.0.0.1:1")
    # What Python makes of bytes of another encoding than the system's.
    status, _, err = run(capsys, "label", "helpfulness", "stable", 2, "--reason", "gr\udcf6sser", *where)
    assert (status, "is no text" in err, err.count("\n")) == (2, True, 1)


def test_no_server_is_one_line_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "status", "--server", "127.0.0.1:1")
    assert (status, out) == (1, "")
    assert err.startswith("rm-server: No server answers at 127.0.0.1:1")
    assert len(err.splitlines()) == 1


def test_a_command_asks_one_server(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RM_TARGET", "rm-1:50051,rm-2:50051")  # as clients take it
    status, _, err = run(capsys, "models")
    assert (status, err.count("\n")) == (1, 1)
    assert "names several servers" in err
    assert "--server" in err


@pytest.mark.parametrize("token", ["geheimniß", "a\nb"])
def test_a_token_that_no_header_can_carry_is_not_sent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str
) -> None:
    monkeypatch.setenv("RM_TOKEN", token)
    status, _, err = run(capsys, "models", "--server", "127.0.0.1:1")
    assert (status, "printable ASCII" in err) == (1, True)
    file = tmp_path / "token"
    file.write_bytes(b"\xff\xfe")
    status, _, err = run(capsys, "models", "--server", "127.0.0.1:1", "--token-file", file)
    assert (status, "is no text" in err) == (1, True)


def test_a_file_that_cannot_be_written_is_one_line_and_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def runs_on_a_full_disk(arguments: argparse.Namespace) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "v1/model.safetensors")

    monkeypatch.setattr(train, "run_train", runs_on_a_full_disk)
    status, out, err = run(capsys, "train", "--data", "d", "--base", "b", "--out", "v1")
    assert (status, out) == (1, "")
    assert err == "rm-server: [Errno 28] No space left on device: 'v1/model.safetensors'\n"


def test_help_does_not_import_what_computes() -> None:
    program = (
        "import sys\nfrom rm_server import cli\n"
        "heavy = {'torch', 'transformers', 'grpc', 'sqlalchemy', 'aiohttp', 'numpy'}\n"
        "try:\n    cli.main(['serve', '--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "rm_server.cli", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "rm-server" in done.stdout


def test_a_terminal_without_the_characters_is_shown_the_rest(home: Path) -> None:
    command = [sys.executable, "-m", "rm_server.cli", "history", "--home", home]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "latin-1"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u2192 1" in done.stdout  # an arrow, in the cell of what a label names


def test_moving_a_label_in_a_home_keeps_the_version_s_precision(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    catalog, _ = open_home(home)
    catalog.set_wanted("helpfulness", 2, True, "ann", precision="bf16")
    assert run(capsys, "label", "helpfulness", "stable", "2", "--home", home)[0] == 0
    snapshot = catalog.snapshot()
    catalog.close()
    assert snapshot.labels["helpfulness", "stable"] == 2
    assert snapshot.wanted_precision["helpfulness", 2] == "bf16"
