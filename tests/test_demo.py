"""The demo's own parts: stages that are kept, and figures that are computed from what the processes left behind."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DEMO = Path(__file__).parent.parent / "examples" / "demo"

METRICS = """\
# TYPE rm_requests counter
rm_requests_total{method="Score",model="story",version="1",reason="ok"} 3
rm_requests_total{method="Score",model="story",version="2",reason="ok"} 4
rm_requests_total{method="Score",model="story",version="2",reason="queue_full"} 2
rm_requests_total{method="Score",model="story",version="2",reason="cancelled"} 1
rm_requests_total{method="ListModels",model="",version="",reason="ok"} 9
"""


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a module of the demo, which is a folder of scripts."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(DEMO))

    def module(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(DEMO)):
            del sys.modules[name]


def test_a_stage_runs_again_only_when_its_inputs_changed(demo: Any, tmp_path: Path) -> None:
    source, result = tmp_path / "source", tmp_path / "result"
    source.write_text("a")
    ran: list[str] = []

    def action() -> None:
        assert not result.exists(), "what an earlier run left is gone"
        result.write_text(source.read_text())
        ran.append(result.read_text())

    def run() -> bool:
        return bool(demo("stages").Stages(tmp_path / "stages").run("copy", [source, "option"], [result], action))

    assert [run(), run()] == [True, False]
    source.write_text("b")
    assert [run(), run()] == [True, False]
    result.unlink()
    assert run()
    assert ran == ["a", "b", "b"]


def test_a_stage_that_failed_is_not_remembered(demo: Any, tmp_path: Path) -> None:
    stages = demo("stages").Stages(tmp_path / "stages")
    with pytest.raises(ZeroDivisionError):
        stages.run("fails", ["x"], [], lambda: 1 / 0)
    assert stages.run("fails", ["x"], [], lambda: None)


def test_the_summary_is_computed_from_the_logs(demo: Any, tmp_path: Path) -> None:
    for version in (1, 2):
        evaluation = {
            "num_pairs": 10,
            "accuracy": 0.6 + version / 10,
            "accuracy_interval": [0.5, 0.9],
            "length_matched_accuracy": 0.6,
            "longer_wins_accuracy": 0.7,
            "beyond_length": {"coefficient": 1.0, "interval": [0.2, 1.8]},
            "digest": "d" * 64,
        }
        (tmp_path / f"evaluation_v{version}.json").write_text(json.dumps(evaluation))
    (tmp_path / "compared.json").write_text(json.dumps({"v1": [1.0, 2.0, 3.0], "v2": [2.0, 4.0, 6.0]}))
    steps = range(1, 21)
    for name in ("first", "second"):
        (tmp_path / f"run_{name}").mkdir()
        rows = [
            {
                "step": step,
                "episodes": 32 * step,
                "kl": float(step),
                "entropy": 2.0,
                "reward_version": 1 if step < 11 else 2,
                "reward_wait_s": 0.5,
                "step_s": 2.0,
                **({"events": [{"kind": "version_changed"}]} if step == 11 else {}),
            }
            for step in steps
        ]
        (tmp_path / f"run_{name}" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rescored = {
        "rollouts": {name: [[step, float(step)] for step in steps for _ in range(2)] for name in ("first", "second")},
        "texts": {"before": [0.0, 2.0, 4.0], "first": [5.0, 7.0], "second": [6.0, 6.0]},
    }
    (tmp_path / "rescored.json").write_text(json.dumps(rescored))

    summary = demo("figures").summarize(tmp_path, METRICS, {"total": 1.0})

    assert summary["serving"] == {
        "requests": 10,
        "failed_requests": 2,
        "cancelled_requests": 1,
        "versions_served": [1, 2],
    }
    ppo = summary["ppo"]
    assert (ppo["score_first"], ppo["score_last"], ppo["kl_last"]) == (1.5, 19.5, 19.5)
    assert (ppo["reference_std"], ppo["rise_in_reference_std"]) == (2.0, 9.0)
    assert (ppo["versions"], ppo["version_switch_steps"], ppo["reward_wait_share"]) == ([1, 2], [11], 0.25)
    assert (ppo["held_out_openings_before"], ppo["held_out_openings_after"]) == (2.0, 6.0)
    assert summary["versions_compared"]["pearson"] == pytest.approx(1.0)
    assert summary["reward_model"]["v2"]["accuracy"] == pytest.approx(0.8)
