"""TRL's GRPO and RLOO train the demo's policy with rewards that come over the wire."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from client.fake_server import FakeServer

EXAMPLE = Path(__file__).parents[2] / "examples" / "adapters_trl.py"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.stop()


@pytest.mark.parametrize("chosen", [["--trainer", "grpo"], ["--trainer", "rloo", "--awaited"]])
def test_it_fetches_its_rewards(server: FakeServer, tmp_path: Path, chosen: list[str]) -> None:
    options = [
        *chosen,
        "--server",
        server.address,
        "--model",
        "length",
        "--steps",
        "2",
        "--output",
        str(tmp_path / "run"),
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step 2: reward " in done.stdout
    assert ", version 1" in done.stdout
    assert len(server.requests) == 2
