"""A version is promoted while a PPO run goes on: what each `on_version_change` does, and what the report says of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from rm_api.v1 import models_pb2
from running_server import RunningServer, make_rules_version, running
from tiny_policies import make_config, read_jsonl, save_id_prompts, save_policy, without_times

from ppo_client import cli
from ppo_client.ppo import PPOTrainer
from ppo_client.ppo.checkpoint import RunState, latest_checkpoint
from ppo_client.ppo.config import EvaluationConfig
from ppo_client.ppo.errors import ConfigError, VersionChanged
from rm_server.registry.records import CalibrationRecord


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """even@1 (stable): the share of even token ids, even@2: of odd ones; both with a calibration to 2 · even − 1."""
    torch.set_num_threads(1)
    save_policy(tmp_path / "policy", "llama")
    save_id_prompts(tmp_path / "prompts.jsonl")
    rules = [
        make_rules_version(tmp_path / f"v{residue}", {"type": "token_id_share", "modulus": 2, "residue": residue})
        for residue in (0, 1)
    ]
    with running(tmp_path / "home") as server:
        server.deploy("even", *rules)
        server.calibrate("even", CalibrationRecord("a" * 64, 2.0, -1.0), CalibrationRecord("b" * 64, -2.0, 1.0))
        yield server


class Promoting(PPOTrainer):
    """even@2 becomes the stable one before the third step."""

    def __init__(self, config: Any, server: RunningServer) -> None:
        super().__init__(config)
        self._server = server

    def train_step(self) -> None:
        if self.state.step == 2:
            self._server.models.SetLabel(models_pb2.SetLabelRequest(model="even", label="stable", version=2))
        super().train_step()


def config_of(folder: Path, server: RunningServer, name: str, **reward: Any) -> Any:
    reward = {"model": "even@stable", "targets": [server.app.grpc_address], **reward}
    train = {"output": str(folder / name), "num_steps": 4, "checkpoint_every_steps": 0}
    return make_config(folder, reward=reward, train=train)


def rows_of(run: Path) -> list[dict[str, Any]]:
    return without_times(read_jsonl(run / "metrics.jsonl"))


def report_of(run: Path) -> str:
    pytest.importorskip("matplotlib")
    assert cli.main(["report", str(run)]) == 0
    return (run / "report.html").read_text(encoding="utf-8")


MARK = "stroke: #b0413e"
"""Of the line where another version answered first"""


def test_stop_ends_the_run_before_anything_is_learnt_from_the_other_version(
    tmp_path: Path, server: RunningServer
) -> None:
    with pytest.raises(VersionChanged, match=r"'even@stable' is now even@2 .* the run learns from even@1"):
        Promoting(config_of(tmp_path, server, "run", on_version_change="stop"), server).train()
    run = tmp_path / "run"
    assert latest_checkpoint(run).name == "step-000002"
    assert [row["reward_version"] for row in rows_of(run)] == [1, 1]
    # To go on with the old one, as the message says.
    PPOTrainer.resume(run, overrides=["reward.model=even@1"]).train()
    assert [row["reward_version"] for row in rows_of(run)] == [1, 1, 1, 1]
    assert not any("events" in row for row in rows_of(run))
    assert MARK not in report_of(run)


def test_stop_ends_the_run_before_it_is_evaluated_by_the_other_version(tmp_path: Path, server: RunningServer) -> None:
    class PromotingAfterwards(PPOTrainer):
        def train_step(self) -> None:
            super().train_step()
            if self.state.step == 2:
                server.models.SetLabel(models_pb2.SetLabelRequest(model="even", label="stable", version=2))

    config = config_of(tmp_path, server, "run", on_version_change="stop")
    evaluation = EvaluationConfig(prompts=config.data.prompts, every_steps=1, count=4)
    with pytest.raises(VersionChanged, match="'even@stable' is now even@2"):
        PromotingAfterwards(replace(config, evaluation=evaluation)).train()
    run = tmp_path / "run"
    assert RunState.from_json((run / "best" / "state.json").read_text()).step == 1
    PPOTrainer.resume(run, overrides=["reward.model=even@1"]).train()
    rows = read_jsonl(run / "evaluations.jsonl")
    assert [(row["step"], row["versions"]) for row in rows] == [(step, ["even@1"]) for step in (1, 2, 3, 4)]


def test_one_of_several_models_can_be_kept_as_it_was(tmp_path: Path, server: RunningServer) -> None:
    reward = {"model": "", "models": [{"model": "even@stable"}, {"model": "even@2", "weight": -0.5}]}
    with pytest.raises(VersionChanged, match=r"--set reward\.models=\[…\], with even@1 in the place of 'even@stable'"):
        Promoting(config_of(tmp_path, server, "run", on_version_change="stop", **reward), server).train()
    kept = 'reward.models=[{model = "even@1", weight = %s}, {model = "even@2", weight = -0.5}]'
    with pytest.raises(ConfigError, match="the selector of each may"):
        PPOTrainer.resume(tmp_path / "run", overrides=[kept % 2.0])
    PPOTrainer.resume(tmp_path / "run", overrides=[kept % 1.0]).train()
    rows = rows_of(tmp_path / "run")
    assert [row["reward_version"] for row in rows] == [1, 1, 1, 1]
    assert not any("events" in row for row in rows)


def test_follow_goes_on_with_the_other_versions_raw_scores_and_marks_the_step(
    tmp_path: Path, server: RunningServer
) -> None:
    Promoting(config_of(tmp_path, server, "run", on_version_change="follow"), server).train()
    rows = rows_of(tmp_path / "run")
    assert [row["reward_version"] for row in rows] == [1, 1, 2, 2]
    (event,) = rows[2]["events"]
    assert (event["before"], event["after"], event["is_calibrated"]) == (1, 2, False)
    assert [row["step"] for row in rows if "events" in row] == [3]
    page = report_of(tmp_path / "run")
    assert "scored by even@1, then even@2" in page
    assert "Another version answered first in step 3" in page
    assert "scores before and after step 3 are not of one scale" in page
    assert page.count(MARK) == page.count("<svg"), "each curve has the line"


def test_recalibrate_goes_on_as_if_the_version_had_not_changed(tmp_path: Path, server: RunningServer) -> None:
    """For the two versions' scores are the same on the common scale."""
    setting = {"on_version_change": "recalibrate"}
    PPOTrainer(config_of(tmp_path, server, "undisturbed", **setting)).train()
    AcceleratorState._reset_state(reset_partial_state=True)
    Promoting(config_of(tmp_path, server, "run", **setting), server).train()
    rows, undisturbed = rows_of(tmp_path / "run"), rows_of(tmp_path / "undisturbed")
    assert [row["reward_version"] for row in rows] == [1, 1, 2, 2]
    assert min(row["score_min"] for row in rows) < 0, "2 · even − 1, not a share"
    (event,) = rows[2]["events"]
    assert event["is_calibrated"]
    for name in ("score_mean", "score_std", "policy_loss", "value_loss", "kl"):
        found, expected = ([row[name] for row in lines] for lines in (rows, undisturbed))
        assert found == pytest.approx(expected, abs=1e-5), name
    page = report_of(tmp_path / "run")
    assert "Another version answered first in step 3" in page
    assert "all scores are on the model's common scale" in page.replace("&#39;", "'")
    assert page.count(MARK) == page.count("<svg")


@pytest.mark.parametrize("selector", ["even", "even@stable"])
def test_evaluate_repeats_a_run_whose_version_is_not_the_stable_one_any_more(
    tmp_path: Path, server: RunningServer, selector: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(tmp_path, server, "run", model=selector)
    evaluation = EvaluationConfig(prompts=config.data.prompts, every_steps=2, count=4, model=selector)
    PPOTrainer(replace(config, evaluation=evaluation)).train()
    server.models.SetLabel(models_pb2.SetLabelRequest(model="even", label="stable", version=2))
    run = tmp_path / "run"
    last = read_jsonl(run / "evaluations.jsonl")[-1]
    options = ["--policy", str(run / "policy"), "--like", str(run), "--server", server.app.grpc_address, "--json"]
    capsys.readouterr()
    assert cli.main(["evaluate", *options]) == 0
    again = json.loads(capsys.readouterr().out)
    for name in ("versions", "judges", "score_mean", "judge_mean"):
        assert again[name] == last[name], name
    assert cli.main(["evaluate", *options, "--reward", selector]) == 0
    assert json.loads(capsys.readouterr().out)["versions"] == ["even@2"]
