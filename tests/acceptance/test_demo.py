"""The demo as a stranger runs it, and what its summary must show."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_the_demo_shows_what_it_promises() -> None:
    done = subprocess.run([sys.executable, "examples/demo"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = ROOT / "demo_report"
    summary = json.loads((report / "summary.json").read_text())
    for version in ("v1", "v2"):
        figures = summary["reward_model"][version]
        low, high = figures["accuracy_interval"]
        assert low <= figures["accuracy"] <= high
        assert 0 < figures["length_matched_accuracy"] < 1
    assert summary["reward_model"]["v2"]["beyond_length"]["interval"][0] > 0
    ppo = summary["ppo"]
    assert ppo["score_last"] - ppo["score_first"] >= ppo["reference_std"]
    assert ppo["versions"] == [1, 2]
    assert len(ppo["version_switch_steps"]) == 1
    assert summary["second_run"]["versions"] == [2]
    assert summary["serving"]["failed_requests"] == 0
    assert summary["serving"]["requests"] > 0
    assert summary["serving"]["versions_served"] == [1, 2]
    assert summary["seconds"]["total"] > 0
    assert (report / "report.html").stat().st_size > 10_000
