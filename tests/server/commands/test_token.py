"""`rm-server token` as an operator types it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from rm_server import cli
from rm_server.api.tokens import hash_of
from rm_server.api.tokens_file import read_tokens


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.toml"


def test_the_token_is_printed_once_and_only_its_hash_is_kept(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["token", "new", "trainer-1", "--role", "score", "--file", str(file)]) == 0
    token = capsys.readouterr().out.strip()
    (entry,) = read_tokens(file)
    assert entry.sha256 == hash_of(token)
    assert token not in file.read_text()


def test_a_name_that_is_taken_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["token", "new", "trainer-1", "--role", "score", "--tokens", str(file)]) == 0
    before = file.read_text()
    assert cli.main(["token", "new", "trainer-1", "--role", "admin", "--tokens", str(file)]) == 2
    assert "has a token 'trainer-1' already" in capsys.readouterr().err
    assert file.read_text() == before


def test_expiry_models_and_limits(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    command = ["token", "new", "t", "--role", "deploy", "--expires", "90d", "--models", "helpfulness", "style-*"]
    limits = ["--max-requests-per-s", "5", "--max-items-per-s", "0.5", "--max-concurrent-requests", "2"]
    assert cli.main([*command, *limits, "--file", str(file)]) == 0
    assert cli.main(["token", "new", "ops", "--role", "admin", "--certificate", "ops CN", "--file", str(file)]) == 0
    capsys.readouterr()
    assert cli.main(["token", "list", "--json", "--file", str(file)]) == 0
    first, second = json.loads(capsys.readouterr().out)
    expires = datetime.fromisoformat(first.pop("expires"))
    assert before + timedelta(days=90) <= expires <= datetime.now(UTC) + timedelta(days=90)
    assert first == {
        "name": "t",
        "role": "deploy",
        "certificate": None,
        "is_expired": False,
        "models": ["helpfulness", "style-*"],
        "max_requests_per_s": 5.0,
        "max_items_per_s": 0.5,
        "max_concurrent_requests": 2,
    }
    assert (second["name"], second["certificate"]) == ("ops", "ops CN")
    assert cli.main(["token", "list", "--file", str(file)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[1].startswith("t     deploy  token")
    assert table[2].startswith("ops   admin   certificate ops CN")


@pytest.mark.parametrize("option", ["--certificate", "--expires", "--models"])
def test_an_option_whose_variable_was_empty_gives_nobody_more(
    file: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert cli.main(["token", "new", "ops", "--role", "admin", option, "", "--file", str(file)]) != 0
    output = capsys.readouterr()
    assert (output.out, output.err.count("\n")) == ("", 1)
    assert not file.exists()


def test_a_token_that_is_over_is_marked(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(f'[[token]]\nname = "t"\nsha256 = "{"0" * 64}"\nrole = "score"\nexpires = 2020-01-01T00:00:00Z\n')
    assert cli.main(["token", "list", "--file", str(file)]) == 0
    assert "2020-01-01 00:00:00Z (over)" in capsys.readouterr().out


def test_what_is_revoked_is_gone(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        assert cli.main(["token", "new", name, "--role", "score", "--file", str(file)]) == 0
    assert cli.main(["token", "revoke", "a", "--file", str(file)]) == 0
    assert [entry.name for entry in read_tokens(file)] == ["b"]
    assert cli.main(["token", "revoke", "a", "--file", str(file)]) != 0
    assert "has no token 'a'; it has b" in capsys.readouterr().err
    assert cli.main(["token", "revoke", "b", "--file", str(file)]) == 0
    capsys.readouterr()
    assert cli.main(["token", "list", "--file", str(file)]) == 0
    assert capsys.readouterr().out == "Nobody may call.\n"


@pytest.mark.parametrize(
    "when", ["90", "0d", "soon", "2027-01-31", "2027-01-31T00:00:00", "2020-01-01T00:00:00Z", "9999-12-31T23:59-12:00"]
)
def test_a_time_that_makes_no_sense_is_refused(file: Path, when: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["token", "new", "t", "--role", "score", "--expires", when, "--file", str(file)]) == 1
    assert f"--expires is {when!r}" in capsys.readouterr().err
    assert not file.exists()
