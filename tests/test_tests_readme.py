"""Every test that tests/README.md names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
NAMED = re.findall(r"`(\S+\.py)::(test_\w+)`", (TESTS / "README.md").read_text(encoding="utf-8"))


def functions_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_the_tests_that_are_named_are_there(file: str) -> None:
    assert {name for named, name in NAMED if named == file} <= functions_of(TESTS / file)


def test_every_behaviour_names_its_test() -> None:
    rows = [line for line in (TESTS / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    behaviours = [row for row in rows if not row.startswith("| behaviour")]
    assert len(behaviours) == len(NAMED) > 50
