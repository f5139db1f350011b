"""The commands and lines of the README and of the pages it leads to are those that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ppo_client import cli as ppo_client_cli
from rm_server import cli as rm_server_cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for page in (
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        ROOT / "deploy/README.md",
        ROOT / "bench/README.md",
    )
}
PARSERS = {"rm-server": rm_server_cli.parser, "ppo-client": ppo_client_cli.make_parser}


def lines_of(language: str, page: str = README) -> list[str]:
    blocks = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


COMMANDS = [
    pytest.param(line, id=f"{name}: {line.split(' #')[0]}")
    for name, page in PAGES.items()
    for line in lines_of("bash", page)
    if line.split()[0] in PARSERS
]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_understood(line: str) -> None:
    program, *arguments = shlex.split(line.split(" > ")[0], comments=True)
    assert PARSERS[program]().parse_args(arguments).run


def test_make_has_the_targets() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {line.split()[1] for line in lines_of("bash") if line.startswith("make ")}
    assert {"demo", "test"} <= named <= targets


def test_the_files_it_names_are_there() -> None:
    pattern = r"(?<![/\w-])((?:examples|ppo_client|rm_server|proto|tests|deploy|docs|bench)/[\w./-]+\w)"
    named = {(name, path) for name, page in PAGES.items() for path in re.findall(pattern, page)}
    assert named
    made = (
        "bench/results",
        "bench/side",
        "bench/storm.",
        "bench/ppo.",
        "bench/gpu.",
    )  # by the commands themselves
    assert not [at for at in named if not (ROOT / at[1]).exists() and not at[1].startswith(made)]


def test_the_five_lines_compile() -> None:
    compile("\n".join(lines_of("python")), "README.md", "exec")
