"""A server that is killed twice, and comes back: the run waits, and ends as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest
from outages import run_through_outages


@pytest.mark.slow
def test_a_run_goes_through_two_outages_unchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    undisturbed, disturbed, num_restarts = run_through_outages(tmp_path, outage_s=2.0)
    assert num_restarts == 2
    assert len(disturbed) == 40
    assert disturbed == undisturbed
    told = capsys.readouterr().err
    assert told.count("no scores from 'even@1' so far") >= 2
    # What had been learnt was brought to safety before the first pause.
    early, last = sorted(path.name for path in (tmp_path / "disturbed" / "checkpoints").iterdir())
    assert last == "step-000040"
    assert "step-000010" < early < last
