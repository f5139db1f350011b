"""The README's commands and lines are those that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ppo_client import cli as ppo_client_cli
from rm_server import cli as rm_server_cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PARSERS = {"rm-server": rm_server_cli.parser, "ppo-client": ppo_client_cli.make_parser}


def lines_of(language: str) -> list[str]:
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


COMMANDS = [line for line in lines_of("bash") if line.split()[0] in PARSERS]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_understood(line: str) -> None:
    program, *arguments = shlex.split(line)
    assert PARSERS[program]().parse_args(arguments).run


def test_make_has_the_targets() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {line.split()[1] for line in lines_of("bash") if line.startswith("make ")}
    assert {"demo", "test"} <= named <= targets


def test_the_files_it_names_are_there() -> None:
    named = re.findall(r"(?<![/\w-])((?:examples|ppo_client|rm_server|proto)/[\w./-]+\w)", README)
    assert named
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_five_lines_compile() -> None:
    compile("\n".join(lines_of("python")), "README.md", "exec")
