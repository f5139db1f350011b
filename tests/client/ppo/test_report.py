"""The page has the curves, the texts and the doubts, and nothing a text could smuggle in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_policies import FakeRewards, make_config

from ppo_client import cli
from ppo_client.ppo import PPOTrainer


def test_a_page_about_a_real_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    config = make_config(folder, train={"samples_every_steps": 1})
    PPOTrainer(config, FakeRewards(version=4)).train()
    run = folder / "run"
    row = {"prompt": "p", "completion": "<script>", "score": 1.0, "model": "even", "version": 4}
    lines = [json.dumps({**row, "step": step}) for step in (1, 2)]
    (run / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert cli.main(["report", str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 9
    assert "even@4" in page
    assert "What to doubt" in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    capsys.readouterr()

    assert cli.main(["report", str(run), "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["num_steps"] == 2
    assert numbers["versions"] == ["even@4"]
    assert len(numbers["signs"]) == 3


@pytest.mark.parametrize("text", [None, ""])
def test_a_run_without_steps(tmp_path: Path, text: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    assert cli.main(["report", str(tmp_path)]) == 2
    assert ("no file at" if text is None else "has made no step yet") in capsys.readouterr().err
