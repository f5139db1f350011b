"""The storms in small: nothing that callers could see breaks, and memory stays where it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a quick storm found. How long callers waited is no matter here: other tests may use the machine."""
    out = tmp_path_factory.mktemp("storm") / "storm.json"
    command = [sys.executable, "-m", "bench.storm", "--quick", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(out.read_text())
    return results


def problems(found: dict[str, Any]) -> list[str]:
    return [row["text"] for row in found["rows"] if row.get("what") == "problem"]


def test_no_call_fails_or_meets_what_its_selector_did_not_allow(found: dict[str, Any]) -> None:
    assert problems(found) == []
    assert [found["figures"][name] for name in ("failed", "misversioned", "leases_broken")] == [0, 0, 0]
    assert found["figures"]["requests"] == 8 * 64


def test_the_storm_moved_what_callers_go_by(found: dict[str, Any]) -> None:
    """Otherwise it shows nothing."""
    rows = {row["what"]: row for row in found["rows"] if row.get("question") == "swaps"}
    assert rows["callers"]["versions_met"] > 3
    for what in ("labels", "swaps", "splits", "loads"):
        assert rows[f"{what} changed"]["num"] > 0


def test_a_swap_is_measured_against_no_swap(found: dict[str, Any]) -> None:
    rows = [row for row in found["rows"] if row.get("question") == "latency"]
    assert any(row["what"] == "swap" and row["swaps"] > 0 and row["calls"] > 0 for row in rows)
    assert found["figures"]["p99_swap_over_steady"] > 0


def test_loading_and_unloading_keeps_no_memory(found: dict[str, Any]) -> None:
    assert found["figures"]["load_cycles"] == 20
    # A version that stayed behind would have 4 MB of weights alone.
    assert found["figures"]["memory_growth_mb"] < 40


def test_every_kill_leaves_a_home_that_is_consistent_and_served(found: dict[str, Any]) -> None:
    assert (found["figures"]["kills"], found["figures"]["kills_inconsistent"]) == (12, 0)


def test_who_scores_sees_nothing_of_replicas_and_databases_that_die(found: dict[str, Any]) -> None:
    rows = [row for row in found["rows"] if row["question"] == "replicas"]
    for row in rows:
        if "not_run" in row:
            pytest.skip(row["not_run"])
    assert found["figures"]["replica_failed"] == 0
    assert all(row["answers"] > 0 for row in rows if "answers" in row)
