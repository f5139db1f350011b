"""Evaluations look and do not touch; they keep the best, and can end a run."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_policies import KINDS, FakeRewards, even_share, make_config, read_jsonl, save_policy, without_times

from ppo_client.client.errors import ServerUnreachable
from ppo_client.ppo import PPOTrainer
from ppo_client.ppo.checkpoint import latest_checkpoint
from ppo_client.ppo.conditions import Conditions
from ppo_client.ppo.config import EvaluationConfig
from ppo_client.ppo.errors import NonFiniteKL, RewardServiceAway
from ppo_client.ppo.evaluation_facts import EvaluationFacts, measure_of
from ppo_client.ppo.models.sequences import Sequences
from ppo_client.ppo.policy import Reading
from ppo_client.ppo.progress import Progress, is_due
from ppo_client.ppo.text_facts import WinRate


class Opinions(FakeRewards):
    """`even@1` gives the share of even tokens, `odd@2`, the second opinion, the share of odd ones."""

    def submit(self, model: str, **texts: Any) -> Any:
        is_judge = model == "odd@2"
        self.score = (lambda prompt, text: 1 - even_share(prompt, text)) if is_judge else even_share
        self.version, self.digest = (2, "2" * 64) if is_judge else (1, "1" * 64)
        return super().submit(model, **texts)


def config_of(folder: Path, **evaluation: Any) -> Any:
    settings: dict[str, Any] = {
        "prompts": str(folder / "prompts.jsonl"),
        "every_steps": 2,
        "count": 6,
        "model": "odd@2",
    }
    return make_config(
        folder,
        evaluation=settings | evaluation,
        reward={"model": "even@1"},
        train={"num_steps": 5, "checkpoint_every_steps": 2},
    )


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return load_file(latest_checkpoint(run) / "policy" / "model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_learns_the_same_with_and_without(folder: Path, kind: str) -> None:
    family, settings = KINDS[kind]
    save_policy(folder / "policy", family)
    evaluation = {"prompts": str(folder / "prompts.jsonl"), "every_steps": 1, "count": 5, "model": "odd@2"}
    rows, parameters = [], []
    for name, sections in (("with", {"evaluation": evaluation}), ("without", {})):
        config = make_config(folder, **settings, **sections, train={"output": str(folder / name), "num_steps": 3})
        trainer = PPOTrainer(config, Opinions())
        trainer.train()
        rows.append(without_times(read_jsonl(folder / name / "metrics.jsonl")))
        parameters.append([parameter.clone() for parameter in trainer.run.actor_critic.parameters()])
    assert rows[0] == rows[1]
    assert all(torch.equal(one, other) for one, other in zip(*parameters, strict=True))
    assert len(read_jsonl(folder / "with" / "evaluations.jsonl")) == 3


def test_what_an_evaluation_says(folder: Path) -> None:
    rewards = Opinions()
    PPOTrainer(config_of(folder), rewards).train()
    rows = read_jsonl(folder / "run" / "evaluations.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 5]
    for row in rows:
        assert (row["versions"], row["judges"], row["count"]) == (["even@1"], ["odd@2"], 6)
        # What one reward gives, the other takes.
        assert row["score_mean"] + row["judge_mean"] == pytest.approx(1.0)
        assert row["score_judge_correlation"] == pytest.approx(-1.0)
        assert row["wins"] + row["ties"] + row["losses"] == 6
        assert row["win_rate_low"] < row["win_rate"] < row["win_rate_high"]
        first = row["texts"][0]["policy"]
        assert first["score"] + first["judged"] == pytest.approx(1.0)
    assert len({row["reference_score_mean"] for row in rows}) == 1, "the reference writes the same each time"


def test_a_policy_that_is_its_reference_ties_with_kl_zero(folder: Path) -> None:
    config = make_config(
        folder,
        evaluation={"prompts": str(folder / "prompts.jsonl"), "every_steps": 1, "count": 6, "batch_size": 4},
        ppo={"learning_rate": 1e-30},
        train={"num_steps": 1},
    )
    PPOTrainer(config, FakeRewards()).train()
    (row,) = read_jsonl(folder / "run" / "evaluations.jsonl")
    assert (row["ties"], row["win_rate"]) == (6, 0.5)
    assert row["kl"] == pytest.approx(0.0, abs=1e-4)
    assert row["score_mean"] == row["judge_mean"] == row["reference_score_mean"]


@pytest.mark.parametrize("settings", [{}, {"lora": {"rank": 2}}], ids=["full", "lora"])
def test_in_bf16_the_kl_of_a_policy_that_is_its_reference_is_exactly_zero(folder: Path, settings: Any) -> None:
    """It is of two forward passes: while sampling, the cache makes for another rounding."""
    config = make_config(
        folder,
        **settings,
        evaluation={"prompts": str(folder / "prompts.jsonl"), "every_steps": 1, "count": 6},
        ppo={"learning_rate": 1e-30},
        rollout={"max_response_tokens": 20},
        train={"num_steps": 1, "mixed_precision": "bf16"},
    )
    PPOTrainer(config, FakeRewards()).train()
    (row,) = read_jsonl(folder / "run" / "evaluations.jsonl")
    assert row["kl"] == 0.0


def test_the_best_is_kept_beside_the_last_ones(folder: Path) -> None:
    PPOTrainer(config_of(folder), Opinions()).train()
    rows = read_jsonl(folder / "run" / "evaluations.jsonl")
    best = max(rows, key=lambda row: row["judge_mean"])
    resumed = PPOTrainer.resume(folder / "run", Opinions()).state.progress
    assert (resumed.best_step, resumed.best_value) == (best["step"], best["judge_mean"])
    assert f'"step": {best["step"]},' in (folder / "run" / "best" / "state.json").read_text()
    assert (folder / "run" / "best" / "policy" / "model.safetensors").is_file()


def test_a_run_that_moves_too_far_ends_and_can_be_told_to_go_on(folder: Path) -> None:
    state = PPOTrainer(config_of(folder, max_kl=1e-9, patience=0), Opinions()).train()
    rows = read_jsonl(folder / "run" / "evaluations.jsonl")
    moved = [row["step"] for row in rows if row["kl"] > 1e-9]
    assert state.step == moved[0] < 5
    assert latest_checkpoint(folder / "run").name == f"step-{state.step:06d}"
    assert (folder / "run" / "policy").is_dir()
    assert PPOTrainer.resume(folder / "run", Opinions()).train().step == state.step
    assert PPOTrainer.resume(folder / "run", Opinions(), ["evaluation.max_kl=100"]).train().step == 5


def test_a_policy_that_is_infinitely_far_from_its_reference_is_told_by_name(folder: Path) -> None:
    trainer = PPOTrainer(config_of(folder), Opinions())
    evaluator = trainer.run.evaluator
    assert evaluator is not None
    whole = evaluator.reference

    class Reference:
        sample = whole.sample

        def __call__(self, sequences: Sequences) -> Reading:
            read = whole(sequences)
            return read._replace(log_probs=torch.full_like(read.log_probs, float("nan")))

    evaluator.reference = Reference()
    with pytest.raises(NonFiniteKL, match="log π_ref = nan"):
        trainer.train()
    assert latest_checkpoint(folder / "run").name == "step-000002", "with what was learnt until then"


class Promoted(FakeRewards):
    """After the first evaluation a version 2, whose scores are lower by 10 than version 1's."""

    def submit(self, model: str, **texts: Any) -> Any:
        future = super().submit(model, **texts)
        if len(texts["prompts"]) == 12:
            self.version, self.digest, self.score = 2, "2" * 64, lambda prompt, text: even_share(prompt, text) - 10
        return future


def test_by_another_version_the_best_is_sought_anew(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = {"prompts": str(folder / "prompts.jsonl"), "every_steps": 1, "count": 6, "patience": 3}
    config = make_config(folder, evaluation=evaluation, reward={"model": "even@stable"}, train={"num_steps": 4})
    state = PPOTrainer(config, Promoted()).train()
    assert state.step == 4
    assert state.progress.best_step > 1
    assert state.progress.best_value is not None
    assert state.progress.best_value < 0
    assert "the best is sought anew, by judge_mean of even@2 on" in capsys.readouterr().err
    assert f'"step": {state.progress.best_step},' in (folder / "run" / "best" / "state.json").read_text()


def test_what_makes_evaluations_comparable(folder: Path) -> None:
    PPOTrainer(config_of(folder), Opinions()).train()
    (*_, row) = read_jsonl(folder / "run" / "evaluations.jsonl")
    facts = EvaluationFacts(**{item.name: row[item.name] for item in fields(EvaluationFacts)})
    raw = Conditions(**row["conditions"])
    calibrated = replace(raw, scores="calibrated")
    second = EvaluationConfig(prompts="p", model="odd@2")
    assert measure_of(facts, calibrated, second) == f"judge_mean of odd@2 on prompts {raw.prompts}"
    assert measure_of(facts, raw, replace(second, best_by="win_rate")).startswith("win_rate of odd@2")
    assert measure_of(facts, raw, replace(second, best_by="score_mean")).startswith("score_mean of even@1")
    assert measure_of(facts, calibrated, replace(second, best_by="score_mean")).startswith("score_mean of even on")
    assert measure_of(replace(facts, judges=[]), raw, second) == "", "no response had a text"


class Away(Opinions):
    """Not there when the second opinion is asked."""

    def submit(self, model: str, **texts: Any) -> Any:
        if model != "odd@2":
            return super().submit(model, **texts)
        failed: Future[Any] = Future()
        failed.set_exception(ServerUnreachable("nobody answers"))
        return failed


def test_an_evaluation_that_could_not_be_made_is_made_on_resume(folder: Path) -> None:
    whole = folder / "whole"
    config = config_of(folder)
    PPOTrainer(make_config(folder, **_sections(config, output=whole)), Opinions()).train()
    with pytest.raises(RewardServiceAway):
        PPOTrainer(make_config(folder, **_sections(config, patience_s=0.0)), Away()).train()
    assert latest_checkpoint(folder / "run").name == "step-000002"
    PPOTrainer.resume(folder / "run", Opinions()).train()
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert without_times(read_jsonl(folder / "run" / name)) == without_times(read_jsonl(whole / name))
    assert all(torch.equal(value, tensors(whole)[name]) for name, value in tensors(folder / "run").items())


def _sections(config: Any, *, output: Path | None = None, patience_s: float = 600.0) -> dict[str, Any]:
    evaluation = {name: getattr(config.evaluation, name) for name in ("prompts", "every_steps", "count", "model")}
    train: dict[str, Any] = {"num_steps": 5, "checkpoint_every_steps": 2}
    return {
        "evaluation": evaluation,
        "reward": {"model": "even@1", "patience_s": patience_s},
        "train": train | ({"output": str(output)} if output else {}),
    }


def test_progress() -> None:
    progress = Progress().after(10, 1.0, 0.5).after(20, 2.0, 0.7).after(30, 3.0, 0.7).after(40, 4.0, 0.6)
    assert (progress.best_step, progress.best_value, progress.num_since_best) == (20, 0.7, 2)
    assert "no better than that of step 20" in (progress.reason_to_end(EvaluationConfig(patience=2)) or "")
    assert progress.reason_to_end(EvaluationConfig(patience=3)) is None
    assert "4.00 nats" in (progress.reason_to_end(EvaluationConfig(max_kl=3.5)) or "")
    assert Progress().reason_to_end(EvaluationConfig(patience=1, max_kl=1.0)) is None
    progress = Progress().after(10, 1.0, 0.5, "a").after(20, 1.0, 0.4, "")
    assert (progress.best_step, progress.measure) == (10, "a")
    assert progress.after(30, 1.0, 0.3, "b") == Progress(30, 1.0, 30, 0.3, 0, "b")


@pytest.mark.parametrize(
    ("step", "last", "expected"),
    [(0, 0, False), (5, 0, False), (10, 0, True), (10, 10, False), (13, 10, True), (12, 10, False)],
)
def test_when_it_is_time(step: int, last: int, expected: bool) -> None:
    assert is_due(EvaluationConfig(prompts="p", every_steps=10), step, 13, last) is expected
    assert not is_due(EvaluationConfig(), step, 13, last)


def test_win_rates_and_their_interval() -> None:
    rate = WinRate.of([1.0, 2.0, 3.0, 0.0], [0.0, 2.0, 4.0, -1.0])
    assert (rate.wins, rate.ties, rate.losses, rate.value) == (2, 1, 1, 0.625)
    # Wilson's interval for 8 of 10, from tables.
    low, high = WinRate(8, 0, 2).interval
    assert (low, high) == (pytest.approx(0.490, abs=1e-3), pytest.approx(0.943, abs=1e-3))
    assert WinRate(10, 0, 0).interval == (pytest.approx(0.722, abs=1e-3), pytest.approx(1.0))
