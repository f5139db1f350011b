"""Outages of half a minute, twice in a run of 40 steps."""

from __future__ import annotations

from pathlib import Path

from outages import run_through_outages


def test_two_outages_of_thirty_seconds_change_no_score(tmp_path: Path) -> None:
    undisturbed, disturbed, num_restarts = run_through_outages(tmp_path, outage_s=30.0)
    assert num_restarts == 2
    assert len(disturbed) == 40
    assert disturbed == undisturbed
