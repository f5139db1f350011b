"""The reference numbers are what trl 1.12 computes, in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench.peers.environments import python_with
from bench.ppo.questions import TRL

FOLDER = Path(__file__).parent.parent / "client" / "ppo" / "trl_reference"


def leaves(value: Any, name: str = "") -> dict[str, float]:
    """The numbers in nested dictionaries and lists, by their place."""
    if isinstance(value, dict):
        return {place: leaf for key, item in value.items() for place, leaf in leaves(item, f"{name}/{key}").items()}
    if isinstance(value, list):
        return {place: leaf for key, item in enumerate(value) for place, leaf in leaves(item, f"{name}/{key}").items()}
    return {name: value}


def test_trl_s_own_code_gives_the_reference_values(tmp_path: Path) -> None:
    try:
        python = python_with("trl-1.12", [TRL])
    except RuntimeError as error:
        pytest.skip(f"{TRL} cannot be installed into an environment of its own: {error}")
    environment = {**os.environ, "TRL_EXPERIMENTAL_SILENCE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([python, FOLDER / "make.py", tmp_path / "values.json"], check=True, env=environment)
    made = leaves(json.loads((tmp_path / "values.json").read_text(encoding="utf-8")))
    kept = leaves(json.loads((FOLDER / "values.json").read_text(encoding="utf-8")))
    assert made == {
        place: pytest.approx(value, abs=1e-6) if isinstance(value, float) else value for place, value in kept.items()
    }
