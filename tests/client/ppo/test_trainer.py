"""Whole steps: it learns what is rewarded and only that, and what cannot be trusted changes no parameter."""

from __future__ import annotations

import json
import math
import re
import shutil
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_policies import (
    FakeRewards,
    even_share,
    make_config,
    make_scores,
    read_jsonl,
    save_id_prompts,
    save_policy,
    without_times,
)
from transformers import AutoModelForCausalLM

from ppo_client.client.errors import ItemTooLong
from ppo_client.client.scores import Calibration, Scores
from ppo_client.ppo import PPOConfig, PPOTrainer
from ppo_client.ppo.checkpoint import latest_checkpoint
from ppo_client.ppo.errors import (
    CheckpointError,
    ConfigError,
    InvalidScores,
    NonFiniteKL,
    RewardServiceAway,
    VersionChanged,
)


def test_a_run_leaves_what_it_should(folder: Path) -> None:
    rewards = FakeRewards(version=3, digest="d" * 64)
    config = make_config(folder, train={"checkpoint_every_steps": 1, "samples_every_steps": 1, "samples_per_step": 2})
    state = PPOTrainer(config, rewards).train()
    assert (state.step, state.episodes) == (2, 16)
    rows = read_jsonl(folder / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    first = rows[0]
    assert first["kl"] == pytest.approx(0.0, abs=1e-4)
    assert first["first_ratio"] == pytest.approx(1.0, abs=1e-5)
    assert (first["reward_model"], first["reward_version"], first["reward_digest"]) == ("even", 3, "d" * 64)
    assert first["num_optimizer_steps"] == 4
    assert first["explained_variance"] == pytest.approx(0.0, abs=1e-5)
    shares = [even_share(prompt, completion) for prompt, completion in rewards.asked]
    assert first["score_mean"] == pytest.approx(sum(shares[:8]) / 8, abs=1e-6)
    assert first["response_tokens_mean"] == pytest.approx(sum(len(c) for _, c in rewards.asked[:8]) / 8)
    assert {"generate_s", "evaluate_s", "reward_wait_s", "update_s", "step_s"} <= first.keys()
    assert all(math.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))
    samples = read_jsonl(folder / "run" / "samples.jsonl")
    assert [sample["step"] for sample in samples] == [1, 1, 2, 2]
    assert samples[0]["score"] == pytest.approx(shares[0])
    assert samples[0]["version"] == 3
    assert sorted(place.name for place in (folder / "run" / "checkpoints").iterdir()) == ["step-000001", "step-000002"]


def test_the_saved_policy_is_a_plain_model_with_its_value_head_beside(folder: Path) -> None:
    trainer = PPOTrainer(make_config(folder), FakeRewards())
    trainer.train()
    saved = folder / "run" / "policy"
    model = AutoModelForCausalLM.from_pretrained(saved)
    trained = trainer.run.actor_critic.policy.model.state_dict()
    start = AutoModelForCausalLM.from_pretrained(folder / "policy").state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in model.state_dict().items())
    assert any(not torch.equal(tensor, start[name]) for name, tensor in trained.items())
    assert (saved / "critic.safetensors").is_file()
    assert (saved / "tokenizer.json").is_file()


def learning(
    tmp_path: Path,
    rewards: FakeRewards,
    num_steps: int,
    family: str = "gpt2",
    scale: float = 0.05,
    n_embd: int = 32,
    **sections: Any,
) -> list[dict[str, Any]]:
    sizes = {"n_embd": n_embd} if family == "gpt2" else {}
    save_policy(tmp_path / "policy", family, with_tokenizer=False, vocab_size=64, scale=scale, eos_token_id=1, **sizes)
    save_id_prompts(tmp_path / "prompts.jsonl", vocab_size=64)
    settings: dict[str, Any] = {
        "rollout": {"max_response_tokens": 8, "min_response_tokens": 8},
        "kl": {"coefficient": 0.002},
        "ppo": {"batch_size": 32, "num_epochs": 4, "num_minibatches": 2, "learning_rate": 5e-3, "adam_epsilon": 1e-8},
        "train": {"output": str(tmp_path / "run"), "num_steps": num_steps, "tracking": [], "seed": 1},
    }
    for name, values in sections.items():
        settings[name] = settings.get(name, {}) | values
    PPOTrainer(make_config(tmp_path, **settings), rewards).train()
    return read_jsonl(tmp_path / "run" / "metrics.jsonl")


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_it_learns_what_is_rewarded(tmp_path: Path, critic: str) -> None:
    rows = learning(tmp_path, FakeRewards(), 20, critic={"kind": critic})
    assert rows[0]["score_mean"] == pytest.approx(0.5, abs=0.1)
    assert rows[-1]["score_mean"] > 0.85
    # Always, not just at first; the policy's configuration asks for dropout.
    assert max(row["first_max_log_ratio"] for row in rows) < 1e-4


@pytest.mark.parametrize(("family", "critic"), [("t5", "shared"), ("bart", "separate")])
def test_an_encoder_decoder_learns(tmp_path: Path, family: str, critic: str) -> None:
    rows = learning(tmp_path, FakeRewards(), 20, family, critic={"kind": critic})
    assert rows[0]["score_mean"] == pytest.approx(0.5, abs=0.1)
    assert rows[-1]["score_mean"] > 0.85
    assert max(row["first_max_log_ratio"] for row in rows) < 1e-4


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_an_adapter_learns_with_two_percent_of_the_parameters(
    tmp_path: Path, critic: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"lora": {"rank": 3}, "critic": {"kind": critic}, "ppo": {"learning_rate": 1e-2}}
    # The vocabulary's rows stay as they are: it takes some width to tell the tokens apart.
    rows = learning(tmp_path, FakeRewards(), 20, n_embd=128, scale=0.1, **settings)
    share = re.search(r"parameters have gradients \(([\d.]+)%\)", capsys.readouterr().err)
    assert share
    assert 0 < float(share[1]) <= 2
    assert rows[0]["kl"] == 0.0, "exactly"
    assert rows[0]["score_mean"] == pytest.approx(0.5, abs=0.1)
    assert sum(row["score_mean"] for row in rows[-4:]) / 4 > 0.8
    assert max(row["first_max_log_ratio"] for row in rows) < 1e-4


def test_a_strong_penalty_holds_the_policy_and_adapts(tmp_path: Path) -> None:
    rows = learning(
        tmp_path, FakeRewards(), 12, kl={"controller": "adaptive", "coefficient": 0.001, "target": 0.5, "horizon": 64}
    )
    assert rows[0]["kl_coefficient"] == 0.001
    assert rows[1]["kl_coefficient"] == pytest.approx(0.001 * (1 - 0.2 * 32 / 64))  # a KL of 0 is below the target
    assert rows[-1]["kl_coefficient"] > min(row["kl_coefficient"] for row in rows)


def test_a_schedule_of_the_penalty_goes_on_after_a_resume(folder: Path) -> None:
    kl = {"controller": "scheduled", "coefficient": 0.4, "final_coefficient": 0.1, "schedule_steps": 3}
    PPOTrainer(make_config(folder, kl=kl), FakeRewards()).train()
    PPOTrainer.resume(folder / "run", FakeRewards(), ["train.num_steps=5"]).train()
    rows = read_jsonl(folder / "run" / "metrics.jsonl")
    assert [row["kl_coefficient"] for row in rows] == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.1])


def test_normalisation_is_fitted_once_on_the_starting_policy(folder: Path) -> None:
    rewards = FakeRewards(score=lambda p, c: 100 + 10 * even_share(p, c))
    trainer = PPOTrainer(make_config(folder, reward={"normalize_samples": 32}), rewards)
    trainer.train()
    scores = torch.tensor([100 + 10 * even_share(p, c) for p, c in rewards.asked[:32]])
    assert trainer.state.normalizer.gain == pytest.approx(1 / float(scores.std()), rel=1e-4)
    assert float(trainer.state.normalizer(scores).mean()) == pytest.approx(0.0, abs=1e-3)
    assert len(rewards.asked) == 32 + 2 * 8
    saved = json.loads((latest_checkpoint(folder / "run") / "state.json").read_text())
    assert saved["normalizer"]["gain"] == trainer.state.normalizer.gain
    again = PPOTrainer.resume(folder / "run", rewards, ["train.num_steps=3"])
    again.train()
    assert again.state.normalizer == trainer.state.normalizer
    assert len(rewards.asked) == 32 + 3 * 8


class Failing(FakeRewards):
    """Answers `good` calls, then fails in its own way."""

    def __init__(self, good: int, failure: Any) -> None:
        super().__init__()
        self.good, self.failure = good, failure

    def submit(self, model: str, **texts: Any) -> Any:
        future = super().submit(model, **texts)
        if self.num_calls <= self.good:
            return future
        if isinstance(self.failure, Exception):
            failed: Any = Future()
            failed.set_exception(self.failure)
            return failed
        broken = type(future)()
        broken.set_result(make_scores(self.failure(len(texts["completions"]))))
        return broken


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (lambda n: [0.5] * (n - 1) + [math.nan], InvalidScores),
        (lambda n: [0.5] * (n - 1) + [math.inf], InvalidScores),
        (lambda n: [0.5] * (n - 1), InvalidScores),
        (lambda n: [0.5] * (n - 1) + [None], InvalidScores),
        (RuntimeError("refused"), RuntimeError),
    ],
)
def test_scores_that_cannot_be_had_stop_the_run_with_a_checkpoint(folder: Path, failure: Any, error: type) -> None:
    trainer = PPOTrainer(make_config(folder, train={"num_steps": 4, "checkpoint_every_steps": 0}), Failing(2, failure))
    with pytest.raises(error):
        trainer.train()
    assert latest_checkpoint(folder / "run").name == "step-000002"
    assert all(bool(parameter.isfinite().all()) for parameter in trainer.run.actor_critic.parameters())
    assert len(read_jsonl(folder / "run" / "metrics.jsonl")) == 2
    PPOTrainer.resume(folder / "run", FakeRewards()).train()
    assert [row["step"] for row in read_jsonl(folder / "run" / "metrics.jsonl")] == [1, 2, 3, 4]


def test_a_service_that_stays_away_ends_the_run_after_a_checkpoint(folder: Path) -> None:
    from ppo_client.client.errors import ServerUnreachable

    config = make_config(folder, reward={"patience_s": 0.0})
    with pytest.raises(RewardServiceAway, match="nobody answers"):
        PPOTrainer(config, Failing(0, ServerUnreachable("nobody answers"))).train()
    assert latest_checkpoint(folder / "run").name == "step-000000"
    # Nothing was learnt, so it can be resumed or started again, as one likes.
    assert PPOTrainer.resume(folder / "run", FakeRewards(), ["train.num_steps=1"]).train().step == 1
    shutil.rmtree(folder / "run" / "checkpoints" / "step-000001")
    assert PPOTrainer(config, FakeRewards()).train().step == 2


def test_a_reference_that_is_broken_is_named_before_anything_is_learnt(folder: Path) -> None:
    trainer = PPOTrainer(make_config(folder), FakeRewards())
    start = [parameter.clone() for parameter in trainer.run.actor_critic.parameters()]
    with torch.no_grad():
        trainer.run.worker.reference.model.lm_head.weight[:] = math.nan  # type: ignore[attr-defined]
    with pytest.raises(NonFiniteKL, match=r"log π_ref = nan"):
        trainer.train()
    assert all(torch.equal(*pair) for pair in zip(start, trainer.run.actor_critic.parameters(), strict=True))
    assert read_jsonl(folder / "run" / "metrics.jsonl") == []


class Refusing(FakeRewards):
    """From the third call on, without a truncation."""

    def submit(self, model: str, *, truncation: str | None = None, **texts: Any) -> Any:
        future = super().submit(model, **texts)
        if self.num_calls > 2 and truncation is None:
            future = type(future)()
            future.set_exception(ItemTooLong("ask for truncation (keep_end or keep_start)"))
        return future


def test_a_run_that_an_item_too_long_ended_goes_on_with_a_truncation(folder: Path) -> None:
    with pytest.raises(ItemTooLong):
        PPOTrainer(make_config(folder, train={"num_steps": 3}), rewards := Refusing()).train()
    with pytest.raises(ItemTooLong):
        PPOTrainer.resume(folder / "run", rewards).train()
    assert PPOTrainer.resume(folder / "run", rewards, ["reward.truncation=keep_end"]).train().step == 3


class Promoted(FakeRewards):
    """Version 2 from the third call on."""

    def submit(self, model: str, **texts: Any) -> Any:
        if self.num_calls >= 2:
            self.version, self.digest = 2, "2" * 64
        return super().submit(model, **texts)


class Rescaled(FakeRewards):
    """After `good` calls a version 2 whose scores lie between 100 and 150."""

    def __init__(self, good: int, calibration: Calibration | None = None) -> None:
        super().__init__()
        self.good, self.calibration = good, calibration

    def submit(self, model: str, **texts: Any) -> Any:
        if self.num_calls >= self.good:
            self.version, self.digest = 2, "2" * 64
            self.score = lambda prompt, text: 100 + 50 * even_share(prompt, text)
        calibrated = texts.pop("calibrated", False)
        given = super().submit(model, **texts).result()
        future: Future[Scores] = Future()
        future.set_result(replace(given, calibration=self.calibration if calibrated else None))
        return future


RESCALED: dict[str, Any] = {
    "rollout": {"min_response_tokens": 6, "micro_batch_size": 4},  # two calls a step, four to normalise
    "reward": {"model": "even@stable", "normalize_samples": 16},
}


@pytest.mark.parametrize(
    ("good", "fitted_in"), [(6, [2]), (7, [2, 3])], ids=["between two steps", "in the middle of a step"]
)
def test_a_version_of_another_scale_is_normalised_by_itself(
    folder: Path, good: int, fitted_in: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = PPOTrainer(make_config(folder, **RESCALED, train={"num_steps": 4}), rewards := Rescaled(good))
    trainer.train()
    rows = read_jsonl(folder / "run" / "metrics.jsonl")
    kinds = [[event["kind"] for event in row.get("events", ())] for row in rows]
    assert [step for step, found in enumerate(kinds, 1) if "normalizer_fitted" in found] == fitted_in
    assert [step for step, found in enumerate(kinds, 1) if "version_changed" in found] == [2]
    assert rows[3]["score_mean"] > 100
    assert max(row["value_loss"] for row in rows) < 5
    assert "; scores are normalised anew: " in capsys.readouterr().err
    # By all scores of the last step in which it was fitted.
    first = 16 + 8 * (fitted_in[-1] - 1)
    scores = torch.tensor([100 + 50 * even_share(*asked) for asked in rewards.asked[first : first + 8]])
    normalized = trainer.state.normalizer(scores)
    assert (float(normalized.mean()), float(normalized.std())) == (pytest.approx(0.0, abs=1e-4), pytest.approx(1.0))


def test_of_a_version_that_comes_while_normalisation_is_fixed_the_scores_alone_count(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = PPOTrainer(make_config(folder, **RESCALED, train={"num_steps": 1}), rewards := Rescaled(3))
    trainer.train()
    told = capsys.readouterr().err
    assert "the reward now comes from even@2, before from even@1" in told
    assert ", by 4 responses" in told
    scores = torch.tensor([100 + 50 * even_share(*asked) for asked in rewards.asked[16:]])
    normalized = trainer.state.normalizer(scores)
    assert (float(normalized.mean()), float(normalized.std())) == (pytest.approx(0.0, abs=1e-4), pytest.approx(1.0))


class RescaledTwice(Rescaled):
    """After one call more a version 3 whose scores lie between −50 and 0."""

    def submit(self, model: str, **texts: Any) -> Any:
        if self.num_calls <= self.good:
            return super().submit(model, **texts)
        self.version, self.digest = 3, "3" * 64
        self.score = lambda prompt, text: 50 * even_share(prompt, text) - 50
        return FakeRewards.submit(self, model, **texts)


def test_of_two_versions_that_come_in_one_step_each_has_a_map_of_its_own(folder: Path) -> None:
    trainer = PPOTrainer(make_config(folder, **RESCALED, train={"num_steps": 2}), rewards := RescaledTwice(6))
    trainer.train()
    row = read_jsonl(folder / "run" / "metrics.jsonl")[1]
    assert [event["kind"] for event in row["events"]] == ["version_changed", "version_changed", "normalizer_fitted"]
    scores = torch.tensor([50 * even_share(*asked) - 50 for asked in rewards.asked[-4:]])
    normalized = trainer.state.normalizer(scores)
    assert (float(normalized.mean()), float(normalized.std())) == (pytest.approx(0.0, abs=1e-4), pytest.approx(1.0))
    assert row["shaped_score_mean"] == pytest.approx(0.0, abs=1e-4)
    assert trainer.state.normalizer.is_provisional


def test_resumed_after_a_change_of_scale_a_run_is_the_same(folder: Path) -> None:
    whole = {"num_steps": 4, "output": str(folder / "whole")}
    PPOTrainer(make_config(folder, **RESCALED, train=whole), Rescaled(7)).train()
    PPOTrainer(make_config(folder, **RESCALED, train={"num_steps": 2}), Rescaled(7)).train()
    saved = json.loads((latest_checkpoint(folder / "run") / "state.json").read_text())
    assert saved["normalizer"]["is_provisional"]
    PPOTrainer.resume(folder / "run", Rescaled(0), ["train.num_steps=4"]).train()
    found, expected = (read_jsonl(folder / name / "metrics.jsonl") for name in ("run", "whole"))
    assert without_times(found) == without_times(expected)


def test_calibrated_scores_keep_their_normalisation(folder: Path) -> None:
    settings = {**RESCALED, "reward": {**RESCALED["reward"], "calibrated": True}}
    trainer = PPOTrainer(make_config(folder, **settings), Rescaled(6, Calibration("c" * 64, 1.0, 0.0)))
    trainer.train()
    rows = read_jsonl(folder / "run" / "metrics.jsonl")
    assert [event["kind"] for event in rows[1]["events"]] == ["version_changed"]
    assert trainer.state.normalizer.gain > 1


def test_a_label_is_followed_and_the_change_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(folder, reward={"model": "even@stable"}, train={"num_steps": 4})
    trainer = PPOTrainer(config, Promoted())
    trainer.train()
    rows = read_jsonl(folder / "run" / "metrics.jsonl")
    assert [row["reward_version"] for row in rows] == [1, 1, 2, 2]
    assert ["events" in row for row in rows] == [False, False, True, False]
    (event,) = rows[2]["events"]
    assert (event["kind"], event["before"], event["after"]) == ("version_changed", 1, 2)
    assert "step 3: the reward now comes from even@2, before from even@1" in capsys.readouterr().err
    assert trainer.state.version is not None
    assert trainer.state.version.version == 2


def test_another_version_stops_a_run_that_pinned_one_and_it_can_go_on(folder: Path) -> None:
    config = make_config(folder, train={"num_steps": 4, "checkpoint_every_steps": 0})
    with pytest.raises(VersionChanged, match=r"--set reward\.model=even@1"):
        PPOTrainer(config, Promoted()).train()
    assert latest_checkpoint(folder / "run").name == "step-000002"
    second = FakeRewards(version=2, digest="2" * 64)
    with pytest.raises(VersionChanged):
        PPOTrainer.resume(folder / "run", second).train()
    PPOTrainer.resume(folder / "run", second, ["reward.on_version_change=follow"]).train()
    rows = read_jsonl(folder / "run" / "metrics.jsonl")
    assert [(row["step"], row["reward_version"], "events" in row) for row in rows] == [
        (1, 1, False),
        (2, 1, False),
        (3, 2, True),
        (4, 2, False),
    ]


def test_a_run_can_be_asked_to_stop(folder: Path) -> None:
    trainer = PPOTrainer(make_config(folder, train={"num_steps": 5, "checkpoint_every_steps": 0}), FakeRewards())
    trainer.stop_after_step()
    assert trainer.train().step == 1
    assert latest_checkpoint(folder / "run").name == "step-000001"
    assert PPOTrainer.resume(folder / "run", FakeRewards()).train().step == 5


def test_a_run_asked_to_stop_while_the_service_is_away_saves_and_leaves(folder: Path) -> None:
    from ppo_client.client.errors import ServerUnreachable

    config = make_config(folder, train={"num_steps": 5, "checkpoint_every_steps": 0})
    trainer = PPOTrainer(config, Failing(1, ServerUnreachable("nobody answers")))
    trainer.train_step()
    trainer.stop_after_step()
    assert trainer.train().step == 1
    assert latest_checkpoint(folder / "run").name == "step-000001"


def test_an_output_that_holds_a_run_is_not_overwritten(folder: Path) -> None:
    PPOTrainer(make_config(folder), FakeRewards()).train()
    with pytest.raises(ConfigError, match="ppo-client resume"):
        PPOTrainer(make_config(folder), FakeRewards())


def test_a_run_that_never_reached_a_checkpoint_can_be_started_again(folder: Path) -> None:
    config = make_config(folder, train={"checkpoint_every_steps": 0})
    PPOTrainer(config, FakeRewards()).train_step()
    with pytest.raises(CheckpointError, match="start the run again"):
        PPOTrainer.resume(folder / "run", FakeRewards())
    PPOTrainer(config, FakeRewards()).train()
    assert [row["step"] for row in read_jsonl(folder / "run" / "metrics.jsonl")] == [1, 2]


@pytest.mark.parametrize("setting", ["ppo.gamma=0.9", "train.output=elsewhere"])
def test_what_makes_a_run_what_it_is_cannot_change_on_resume(folder: Path, setting: str) -> None:
    PPOTrainer(make_config(folder), FakeRewards()).train()
    name = setting.partition("=")[0]
    with pytest.raises(ConfigError, match=f"{name} cannot change in a run under way"):
        PPOTrainer.resume(folder / "run", FakeRewards(), [setting])


def test_the_class_is_there_when_it_is_wanted() -> None:
    import ppo_client.ppo

    assert PPOConfig.__name__ == "PPOConfig"
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        _ = ppo_client.ppo.Trainer


@pytest.mark.parametrize(
    "sections",
    [
        {"ppo": {"whiten_rewards": True, "whiten_advantages": False}},
        {"kl": {"estimator": "k3"}},
        {"kl": {"estimator": "k2"}},
        {"kl": {"controller": "scheduled"}, "ppo": {"dual_clip": 3.0}},
        {"reward": {"clip": 0.2, "missing_eos_penalty": 1.0}},
        {"reward": {"missing_eos_score": -1.0}},
        {"policy": {"gradient_checkpointing": True}},
        {"train": {"mixed_precision": "bf16"}},
        {"rollout": {"log_probs": "forward", "micro_batch_size": 3}},
        {"critic": {"kind": "separate"}, "ppo": {"micro_batch_size": 1, "stop_kl": 0.5}},
    ],
    ids=str,
)
def test_every_setting_runs(folder: Path, sections: dict[str, Any]) -> None:
    PPOTrainer(make_config(folder, **sections), FakeRewards()).train()
    rows = read_jsonl(folder / "run" / "metrics.jsonl")
    is_bf16 = "bf16" in str(sections)
    assert abs(rows[0]["kl"]) < (0.5 if is_bf16 else 1e-4)
    assert rows[0]["first_max_log_ratio"] < (0.2 if is_bf16 else 1e-4)
    assert rows[1]["kl"] != rows[0]["kl"]
