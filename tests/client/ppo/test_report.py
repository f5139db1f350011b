"""The page has the curves, the texts and the doubts, and nothing a text could smuggle in."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
from client.ppo.test_evaluation import Opinions
from markupsafe import escape
from tiny_models import EOS_ID
from tiny_policies import FakeRewards, make_config, read_jsonl

from ppo_client import cli
from ppo_client.ppo import PPOTrainer
from ppo_client.ppo.evaluation_facts import EvaluationFacts
from ppo_client.ppo.run_logs import comparison


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

    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "sco')  # a disk that is full, or a look in the middle of a write
    assert cli.main(["report", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == numbers


def test_the_axis_of_one_step_has_that_step_alone(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    PPOTrainer(make_config(folder, train={"num_steps": 1}), FakeRewards()).train()
    assert cli.main(["report", str(folder / "run")]) == 0
    page = (folder / "run" / "report.html").read_text(encoding="utf-8")
    assert page.count("<!-- 1 -->") >= page.count("<svg"), "as matplotlib notes what it draws as paths"


def test_a_page_about_a_run_that_was_evaluated(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Held-out curves with both opinions, the same prompts before and after, and what to doubt, in numbers."""
    pytest.importorskip("matplotlib")
    ids = [EOS_ID, *range(100, 130)]  # so many that responses differ in length
    (folder / "policy" / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}), encoding="utf-8")
    evaluation = {"prompts": str(folder / "prompts.jsonl"), "every_steps": 1, "count": 6, "model": "odd@2"}
    config = make_config(
        folder,
        reward={"model": "even@1"},
        evaluation=evaluation,
        rollout={"max_response_tokens": 12},
        train={"samples_per_step": 2},
    )
    PPOTrainer(config, Opinions()).train()
    run = folder / "run"
    first, last = read_jsonl(run / "evaluations.jsonl")
    first["repeated_3"], last["repeated_3"] = 0.11, 0.87  # such short texts hold no three words
    lines = [json.dumps(row) for row in (first, last)]
    (run / "evaluations.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert cli.main(["report", str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 9 + 4
    assert f"{first['score_length_correlation']:.2f}" in page
    assert '<td class="number">0.11</td>\n<td class="number">0.87</td>' in page
    assert f"{last['judge_mean']:.3f}" in page
    assert "reference</th><th>policy after step 2" in page
    assert page.count("second opinion 0.") + page.count("second opinion 1.") == 2 * 2
    for text in last["texts"]:
        for side in ("policy", "reference"):
            assert escape(text[side]["completion"]) in page
    capsys.readouterr()

    assert cli.main(["report", str(run), "--json"]) == 0
    signs = {sign["name"]: sign for sign in json.loads(capsys.readouterr().out)["signs"]}
    assert len(signs) == 3 + 5
    agreement = signs["held-out: training reward and second opinion agree (correlation)"]
    assert agreement["last"] == pytest.approx(-1.0)
    ours, judged = (signs[f"held-out: {name} above the reference's"] for name in ("training reward", "second opinion"))
    assert ours["last"] == pytest.approx(last["score_mean"] - last["reference_score_mean"])
    assert judged["last"] == pytest.approx(-ours["last"]), "what one opinion gives, the other takes"
    assert signs["held-out: repeated word triples within a text (share)"]["last"] == last["repeated_3"]


def test_evaluations_by_another_version_are_not_of_one_piece_with_those_before(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    evaluation = {"prompts": str(folder / "prompts.jsonl"), "every_steps": 1, "count": 6, "model": "odd@2"}
    config = make_config(folder, reward={"model": "even@1"}, evaluation=evaluation, train={"num_steps": 3})
    PPOTrainer(config, Opinions()).train()
    run = folder / "run"
    rows = read_jsonl(run / "evaluations.jsonl")
    rows[0] |= {"judges": ["odd@1"], "judge_mean": 1000.0}
    (run / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert cli.main(["report", str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<li>judged by: odd@1 (step 1), odd@2 (step 2)</li>" in page
    capsys.readouterr()
    assert cli.main(["report", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["evaluation_changes"] == ["judged by: odd@1 (step 1), odd@2 (step 2)"]
    (sign,) = (sign for sign in told["signs"] if sign["name"] == "held-out: second opinion above the reference's")
    assert sign["first"] == pytest.approx(rows[1]["judge_mean"] - rows[1]["reference_judge_mean"])


@pytest.mark.parametrize("text", [None, ""])
def test_a_run_without_steps(tmp_path: Path, text: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    assert cli.main(["report", str(tmp_path)]) == 2
    assert ("there is no such file" if text is None else "has made no step yet") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "says"),
    [("{", "cannot be read"), ("[1]", "is not what"), ('{"win_rate": 0.5}', "is not what"), (None, "cannot be read")],
)
def test_what_is_no_evaluation_is_not_compared(
    tmp_path: Path, content: str | None, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    step = {"step": 1, "episodes": 8, "step_s": 1.0, "reward_wait_s": 0.0, "reward_model": "m", "reward_version": 1}
    names = ("score_mean", "score_std", "kl", "entropy", "response_tokens_mean", "eos_rate")
    (tmp_path / "metrics.jsonl").write_text(json.dumps(step | dict.fromkeys(names, 0.0)) + "\n")
    (tmp_path / "evaluations.jsonl").write_text(json.dumps({**facts_of_nothing(), "step": 1}) + "\n")
    if content is not None:
        (tmp_path / "other.json").write_text(content)
    assert cli.main(["report", str(tmp_path), "--compare", str(tmp_path / "other.json")]) == 2
    assert says in capsys.readouterr().err


def facts_of_nothing() -> dict[str, object]:
    return {item.name: 0.0 for item in fields(EvaluationFacts)} | {"versions": [], "judges": [], "texts": []}


def test_places_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder / "run.1").mkdir(parents=True)
        (tmp_path / folder / "run.1" / "evaluations.jsonl").write_text(json.dumps(facts_of_nothing()) + "\n")
    (tmp_path / "dpo.json").write_text(json.dumps(facts_of_nothing()))
    places = [tmp_path / "a" / "run.1", tmp_path / "b" / "run.1", tmp_path / "dpo.json"]
    assert [row["name"] for row in comparison(places)] == [str(places[0]), str(places[1]), "dpo"]
    assert [row["name"] for row in comparison(places[1:])] == ["run.1", "dpo"]
