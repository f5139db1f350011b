"""The adapters' examples run; TRL's, which trains for a while, is among the acceptance tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .fake_server import FakeServer

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("adapters_openrlhf.py", "'rewards': [53.0]"),
        ("adapters_verl.py", "{'score': 51.0, 'rm_version': 1, 'rm_truncated': False}"),
    ],
)
def test_examples(server: FakeServer, name: str, says: str) -> None:
    command = [sys.executable, str(EXAMPLES / name), "--server", server.address, "--model", "length"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert says in done.stdout
