"""`make clean` leaves what git knows, and nothing of what git is told to ignore."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_clean_removes_what_git_ignores(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    ignored = []
    for file in (Path(".gitignore"), Path("examples/javascript/.gitignore")):
        for pattern in (ROOT / file).read_text(encoding="utf-8").split():
            ignored.append(tmp_path / file.parent / pattern.strip("/").replace("*", "made"))
    ignored.append(tmp_path / "rm_server" / "api" / "__pycache__")
    for path in ignored:
        (path / "deep").mkdir(parents=True)
    kept = tmp_path / "rm_server" / "api" / "server.py"
    kept.write_text("")
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    assert not [path for path in ignored if path.exists()]
    assert kept.exists()
