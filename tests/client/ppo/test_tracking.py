"""Rows are on disk at once, and after a resume no step is there twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_policies import read_jsonl

from ppo_client.ppo import tracking
from ppo_client.ppo.tracking import JsonLines, Tracker


def row(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "score_mean": 0.5, "kl": 1.0, "entropy": 2.0, "step_s": 0.1, **more}


def test_rows_are_flushed_one_by_one(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "a" / "log.jsonl", 0)
    log.write({"step": 1, "text": "line\u2028separator"})
    path = tmp_path / "a" / "log.jsonl"
    assert read_jsonl(path) == [{"step": 1, "text": "line\u2028separator"}]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 1, "readers often split so"
    log.close()


def test_later_rows_and_half_a_line_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": step, "t": "\u2028"}, ensure_ascii=False) for step in (1, 2, 3, 4)]
    path.write_text("\n".join(lines) + '\n{"step": 5, "t', encoding="utf-8")
    log = JsonLines(path, 3)
    log.write({"step": 4})
    log.close()
    assert [entry["step"] for entry in read_jsonl(path)] == [1, 2, 3, 4]
    assert "t" not in read_jsonl(path)[-1]


def test_a_number_that_json_does_not_know_is_refused(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "log.jsonl", 0)
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.write({"step": 1, "kl": float("nan")})
    log.close()


def test_terminal_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Tracker(tmp_path, last_step=0, num_steps=2, tensorboard=False)
    tracker.step(row(1))
    tracker.samples([{"step": 1, "completion": "x"}])
    tracker.say("hello")
    tracker.close()
    assert read_jsonl(tmp_path / "metrics.jsonl") == [row(1)]
    assert read_jsonl(tmp_path / "samples.jsonl") == [{"step": 1, "completion": "x"}]
    shown = capsys.readouterr().err
    assert "step 1/2 score 0.500 kl 1.00 entropy 2.00" in shown
    assert "hello" in shown


def test_processes_beside_the_main_one_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Tracker(tmp_path, last_step=0, num_steps=2, tensorboard=True, enabled=False)
    tracker.step(row(1))
    tracker.samples([{"step": 1}])
    tracker.say("hello")
    tracker.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


def test_tensorboard_has_numbers_and_events(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracker = Tracker(tmp_path, last_step=0, num_steps=2, tensorboard=True)
    tracker.step(row(1))
    tracker.step(row(2, kl=3.0, events=[{"text": "the reward now comes from m@2"}]))
    tracker.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("kl")] == [(1, 1.0), (2, 3.0)]
    assert events.Tags()["tensors"] == ["events/text_summary"]


def test_without_tensorboard_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    assert tracking._summary_writer(tmp_path, 0) is None
    tracker = Tracker(tmp_path, last_step=0, num_steps=1, tensorboard=True)
    tracker.step(row(1))
    tracker.close()
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 1
