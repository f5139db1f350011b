"""Rows are on disk at once, and after a resume no step is there twice."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tiny_policies import make_config, read_jsonl

from ppo_client.ppo import boards
from ppo_client.ppo.errors import ConfigError
from ppo_client.ppo.tracking import JsonLines, Tracker


def row(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "score_mean": 0.5, "kl": 1.0, "entropy": 2.0, "step_s": 0.1, **more}


def test_rows_can_be_read_at_once(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "a" / "log.jsonl", 0)
    log.write({"step": 1, "text": "line\u2028separator"})
    path = tmp_path / "a" / "log.jsonl"
    assert read_jsonl(path) == [{"step": 1, "text": "line\u2028separator"}]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 1, "readers often split so"


def test_later_rows_and_half_a_line_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": step, "t": "\u2028"}, ensure_ascii=False) for step in (1, 2, 3, 4)]
    path.write_text("\n".join(lines) + '\n{"step": 5, "t', encoding="utf-8")
    log = JsonLines(path, 3)
    log.write({"step": 4})
    assert [entry["step"] for entry in read_jsonl(path)] == [1, 2, 3, 4]
    assert "t" not in read_jsonl(path)[-1]


def test_a_number_that_json_does_not_know_is_refused(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "log.jsonl", 0)
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.write({"step": 1, "kl": float("nan")})


def test_terminal_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Tracker(tmp_path, last_step=0, num_steps=2)
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
    tracker = Tracker(tmp_path, last_step=0, num_steps=2, enabled=False)
    tracker.step(row(1))
    tracker.samples([{"step": 1}])
    tracker.say("hello")
    tracker.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


def test_tensorboard_has_numbers_and_events(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = boards.summary_writer(tmp_path / "tensorboard", 0)
    tracker = Tracker(tmp_path, last_step=0, num_steps=2, boards=[boards.TensorBoard(writer)])
    tracker.step(row(1))
    tracker.step(row(2, kl=3.0, events=[{"text": "the reward now comes from m@2"}]))
    tracker.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("kl")] == [(1, 1.0), (2, 3.0)]
    assert events.Tags()["tensors"] == ["events/text_summary"]


def test_without_tensorboard_the_rest_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert boards.make_boards(make_config(folder, train={"tracking": ["jsonl", "tensorboard"]}), "run", 0) == []


class FakeWandb(ModuleType):
    """Remembers what it was told."""

    AlertLevel = SimpleNamespace(WARN="warn")

    def __init__(self) -> None:
        super().__init__("wandb")
        self.told: list[tuple[str, Any]] = []

    def init(self, **settings: Any) -> Any:
        self.told.append(("init", settings))

        def note(name: str) -> Any:
            return lambda *arguments, **named: self.told.append((name, (*arguments, *named.values())))

        return SimpleNamespace(log=note("log"), alert=note("alert"), finish=note("finish"))


def test_wandb_gets_settings_numbers_and_events(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = make_config(folder, train={"tracking": ["wandb"], "wandb_project": "stories"})
    made = boards.make_boards(config, "team/run 1", 0)
    tracker = Tracker(folder, last_step=0, num_steps=2, boards=made)
    tracker.step(row(1, reward_model="m", events=[{"text": "the reward now comes from m@2"}]))
    tracker.evaluation(row(1, reference_score_mean=0.4, win_rate=0.75, judges=["m@3"]))
    tracker.close()
    settings = fake.told[0][1]
    assert (settings["project"], settings["id"], settings["resume"]) == ("stories", "team-run-1", "allow")
    assert settings["config"]["ppo"]["batch_size"] == 8
    (first,), (second,) = [told for name, told in fake.told if name == "log"]
    assert first["score_mean"] == 0.5
    assert first["ppo_step"] == 1
    assert "reward_model" not in first
    assert second["evaluation/win_rate"] == 0.75
    assert ("alert", ("step 1", "the reward now comes from m@2", "warn")) in fake.told
    assert fake.told[-1] == ("finish", ())


def test_wandb_that_is_not_there_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        boards.make_boards(make_config(folder, train={"tracking": ["wandb"]}), "run", 0)
