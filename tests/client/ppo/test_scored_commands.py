"""`evaluate`, and `sample` with a reward: what they print, against a server on a socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from client.fake_server import FakeServer, as_version, change, fail_items, usual
from rm_api.v1 import errors_pb2, scoring_pb2
from tiny_models import EOS_ID, VOCAB_SIZE
from tiny_policies import make_config, read_jsonl, save_policy
from transformers import GenerationConfig

from ppo_client import RewardClient, cli
from ppo_client.ppo import PPOTrainer
from ppo_client.ppo.config import PPOConfig
from ppo_client.ppo.errors import ConfigError
from ppo_client.ppo.models.sequences import Prompts
from ppo_client.ppo.policy import Policy


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """The score of a text is its length."""
    server = FakeServer()
    yield server
    server.stop()


@pytest.fixture
def policies(tmp_path: Path) -> tuple[str, str]:
    return str(save_policy(tmp_path / "one", "llama")), str(save_policy(tmp_path / "other", "llama", seed=5))


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"number {row}"}) + "\n" for row in range(5)), encoding="utf-8")
    return str(path)


def sampled(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    assert cli.main(["sample", *arguments, "--max-response-tokens", "6", "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.split("\n") if line]


def trained(server: FakeServer, config: PPOConfig) -> tuple[Path, dict[str, Any]]:
    """The run's directory, and the last of the evaluations that it made."""
    with RewardClient(server.address, run="one") as client:
        PPOTrainer(config, client).train()
    run = Path(config.train.output)
    return run, read_jsonl(run / "evaluations.jsonl")[-1]


def like(run: Path, server: FakeServer) -> list[str]:
    return ["evaluate", "--policy", str(run / "policy"), "--like", str(run), "--server", server.address, "--json"]


def check_repeats(again: dict[str, Any], found: dict[str, Any]) -> None:
    for name in found.keys() - {"step", "texts"}:
        assert again[name] == pytest.approx(found[name], abs=1e-5), name


def test_best_of_n_is_the_best_of_what_would_have_been_written(
    server: FakeServer, policies: tuple[str, str], prompts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    scored = ["--server", server.address, "--reward", "length@1", "--batch-size", "4"]
    every = sampled(capsys, policies[0], "--prompts", prompts, "--completions", "3", *scored)
    best = sampled(capsys, policies[0], "--prompts", prompts, "--best-of", "3", *scored)
    assert [row["score"] for row in every] == [len(str(row["completion"])) for row in every]
    assert len(best) == 5
    for number, row in enumerate(best):
        mine = every[3 * number : 3 * number + 3]
        assert row["score"] == max(one["score"] for one in mine)  # type: ignore[type-var]
        assert (row["model"], row["version"], row["best_of"]) == ("length", 1, 3)
        assert row["completion"] in [one["completion"] for one in mine]
    threshold = min(float(str(row["score"])) for row in every)
    assert not server.requests[-1].options.truncation
    kept = sampled(
        capsys,
        policies[0],
        "--prompts",
        prompts,
        "--completions",
        "3",
        *scored,
        "--keep-above",
        str(threshold),
        "--truncation",
        "keep_end",
    )
    assert server.requests[-1].options.truncation
    assert kept == [row for row in every if float(str(row["score"])) > threshold]
    assert kept


def test_a_policy_without_a_tokenizer_samples_ids_and_has_them_scored(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = str(save_policy(tmp_path / "ids", "llama", with_tokenizer=False))
    (tmp_path / "ids.jsonl").write_text('{"prompt": [5, 6]}\n', encoding="utf-8")
    scored = ["--server", server.address, "--reward", "length@1"]
    (row,) = sampled(capsys, policy, "--prompts", str(tmp_path / "ids.jsonl"), *scored)
    (group,) = server.requests[0].groups
    written = group.completions[0].token_ids.ids
    assert (row["prompt"], list(group.prompt.token_ids.ids)) == ("5 6", [5, 6])
    assert (row["num_tokens"], row["score"]) == (len(written), sum(written))


def test_scores_of_two_versions_are_not_compared(
    server: FakeServer, policies: tuple[str, str], prompts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.will(usual, as_version(2))
    arguments = ["sample", policies[0], "--prompts", prompts, "--server", server.address, "--reward", "length@stable"]
    assert cli.main([*arguments, "--best-of", "2", "--batch-size", "2", "--max-response-tokens", "6"]) == 76
    assert "length@stable was length@" in capsys.readouterr().err
    server.will(usual, change(lambda response: setattr(response.calibration, "digest", "d" * 64)))
    arguments.append("--calibrated")
    assert cli.main([*arguments, "--best-of", "2", "--batch-size", "2", "--max-response-tokens", "6"]) == 76
    assert "length@stable was calibrated anew" in capsys.readouterr().err


def test_evaluate_compares_policy_and_reference(
    server: FakeServer, policies: tuple[str, str], prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "--policy", policies[0], "--reference", policies[1], "--prompts", prompts]
    arguments += ["--server", server.address, "--reward", "length@1", "--second", "length@2"]
    arguments += ["--max-response-tokens", "6", "--batch-size", "2"]
    assert cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["versions"], found["judges"], found["count"]) == (["length@1"], ["length@2"], 5)
    assert found["kl"] > 0.1
    texts = found["texts"]
    assert found["score_mean"] == pytest.approx(sum(len(row["policy"]["completion"]) for row in texts) / 5)
    assert found["reference_score_mean"] == pytest.approx(sum(len(row["reference"]["completion"]) for row in texts) / 5)
    wins = sum(len(row["policy"]["completion"]) > len(row["reference"]["completion"]) for row in texts)
    assert found["wins"] == wins
    assert cli.main(arguments) == 0
    table = capsys.readouterr().out
    assert "win rate of the policy by length@2" in table
    assert "mean score by length@1" in table

    same = [policies[0] if argument == policies[1] else argument for argument in arguments]
    assert cli.main([*same, "--json"]) == 0
    alike = json.loads(capsys.readouterr().out)
    assert (alike["win_rate"], alike["ties"]) == (0.5, 5)
    assert alike["kl"] == pytest.approx(0.0, abs=1e-4)


def test_evaluate_reads_the_reference_by_the_policys_eos(
    server: FakeServer, policies: tuple[str, str], prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = save_policy(tmp_path / "reference", "llama")
    GenerationConfig(eos_token_id=[EOS_ID, *range(5, VOCAB_SIZE)]).save_pretrained(reference)
    arguments = ["evaluate", "--policy", policies[0], "--reference", str(reference), "--prompts", prompts, "--json"]
    arguments += ["--server", server.address, "--reward", "length@1"]
    assert cli.main([*arguments, "--max-response-tokens", "6", "--min-response-tokens", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kl"] == pytest.approx(0.0, abs=1e-4)
    assert found["ties"] == 5


def test_evaluate_repeats_what_a_run_found(
    server: FakeServer, folder: Path, prompts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"opening": f"number {row}", "split": ("train", "test")[row % 2]} for row in range(8)]
    Path(prompts).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = make_config(
        folder,
        data={"prompts": prompts, "field": "opening"},
        reward={
            "model": "length@1",
            "input": "text",
            "prompt_template": "Tell: {prompt}",
            "truncation": "keep_start",
            "empty_score": 0.0,
        },
        rollout={"max_response_tokens": 5, "temperature": 0.7},
        evaluation={"prompts": prompts, "where": "split=test", "count": 3, "model": "length@2"},
        train={"seed": 3},
    )
    run, found = trained(server, config)
    arguments = like(run, server)
    assert cli.main(arguments) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["reference"] == config.policy.model
    check_repeats(again, found)
    assert found["conditions"]["truncation"] == "keep_start"
    keep_start = server.requests[-1].options.truncation
    assert {request.options.truncation for request in server.requests} == {keep_start}
    assert keep_start
    assert cli.main([*arguments, "--temperature", "1.3", "--calibrated", "--truncation", "keep_end"]) == 0
    other = json.loads(capsys.readouterr().out)
    changed = {"temperature": 1.3, "scores": "calibrated", "truncation": "keep_end"}
    assert other["conditions"] == {**found["conditions"], **changed}
    assert server.requests[-1].options.truncation not in (0, keep_start)

    place = run.parent / "other.json"
    place.write_text(json.dumps(other), encoding="utf-8")
    assert cli.main(["report", str(run), "--compare", str(place), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["differences"] == [
        "temperature: 0.7 (run), 1.3 (other)",
        "scores: raw (run), calibrated (other)",
        "truncation: keep_start (run), keep_end (other)",
    ]
    assert cli.main(["report", str(run), "--compare", str(place)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<li>temperature: 0.7 (run), 1.3 (other)</li>" in page
    assert cli.main(["report", str(run), "--compare", str(run)]) == 0
    assert "like for like" not in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("overlong", ["drop", "keep_end"])
def test_evaluate_takes_the_prompts_that_a_run_took(
    server: FakeServer, folder: Path, prompts: str, overlong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"number {row}" * (1 + row % 2) for row in range(6)]
    Path(prompts).write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts), encoding="utf-8")
    config = make_config(
        folder,
        data={"prompts": prompts, "max_prompt_tokens": 10, "overlong": overlong},
        reward={"model": "length@1", "input": "text", "empty_score": 0.0},
        evaluation={"prompts": prompts, "count": 3},
    )
    run, found = trained(server, config)
    arguments = like(run, server)
    assert cli.main(arguments) == 0
    again = json.loads(capsys.readouterr().out)
    check_repeats(again, found)
    assert cli.main([*arguments, "--overlong", "refuse"]) == 2
    assert "line 2: 14 tokens, max_prompt_tokens is 10" in capsys.readouterr().err


def test_evaluate_drops_what_a_run_dropped(
    server: FakeServer, folder: Path, prompts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse_odd(
        server: FakeServer, request: scoring_pb2.ScoreRequest, _: grpc.ServicerContext
    ) -> scoring_pb2.ScoreResponse:
        response = server.answer(request)
        for result in response.results:
            if request.model == "length@1" and result.score.value % 2:
                result.error.CopyFrom(errors_pb2.Error(reason=errors_pb2.ERROR_REASON_ITEM_TOO_LONG, message="odd"))
        return response

    server.always = refuse_odd
    config = make_config(
        folder,
        data={"prompts": prompts},
        reward={"model": "length@1", "input": "text", "empty_score": 0.0, "on_failed_item": "drop"},
        evaluation={"prompts": prompts, "model": "length@2"},
    )
    run, found = trained(server, config)
    assert 0 < found["count"] < 5
    arguments = like(run, server)
    assert cli.main(arguments) == 0
    printed = capsys.readouterr()
    again = json.loads(printed.out)
    check_repeats(again, found)
    assert f"{5 - found['count']} of 5 prompts have a response without a score" in printed.err
    assert cli.main([*arguments, "--on-failed-item", "stop"]) == 1
    assert "odd" in capsys.readouterr().err
    server.always = fail_items(0, 1, reason="ITEM_TOO_LONG")
    assert cli.main([*arguments, "--count", "1"]) == 1
    assert "each of the prompts has a response without a score" in capsys.readouterr().err


def test_evaluate_names_its_own_options_where_a_text_has_no_score(
    server: FakeServer, policies: tuple[str, str], prompts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    GenerationConfig(eos_token_id=list(range(VOCAB_SIZE))).save_pretrained(policies[0])  # so each response is empty
    arguments = ["evaluate", "--policy", policies[0], "--reference", policies[1], "--prompts", prompts]
    arguments += ["--server", server.address, "--reward", "length@1", "--max-response-tokens", "6"]
    assert cli.main([*arguments, "--min-response-tokens", "0"]) == 1
    empty = capsys.readouterr().err
    assert "say with --empty-score what such a response is worth" in empty
    server.will(fail_items(0, reason="ITEM_TOO_LONG"))
    assert cli.main(arguments) == 1
    failed = capsys.readouterr().err
    assert "(--truncation)" in failed
    assert "(--on-failed-item drop)" in failed
    for settings_of_runs in ("reward.", "rollout.", "resume"):
        assert settings_of_runs not in empty + failed


@pytest.mark.parametrize("device", ["meta", ""])
@pytest.mark.parametrize("command", ["evaluate", "sample"])
def test_models_and_tensors_are_on_the_device_that_is_named(
    policies: tuple[str, str], prompts: str, command: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = ["--policy", policies[0], "--reference", policies[1]] if command == "evaluate" else [policies[0]]
    found: list[tuple[str, str]] = []

    def sample(policy: Policy, prompts: Prompts, *_: object) -> None:
        found.append((next(policy.parameters()).device.type, prompts.ids.device.type))
        if len(found) == (2 if command == "evaluate" else 1):
            raise ConfigError("each model has been asked")

    monkeypatch.setattr(Policy, "sample", sample)
    scored = ["--prompts", prompts, "--reward", "m", "--server", "127.0.0.1:1"]
    assert cli.main([command, *models, *scored, *(["--device", device] if device else [])]) == 2
    assert set(found) == {(device or ("cuda" if torch.cuda.is_available() else "cpu"),) * 2}


def test_a_device_that_is_not_there_is_named(policies: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sample", policies[0], "--prompt", "a", "--device", "nowhere"]) == 2
    assert "--device: nothing can be computed on 'nowhere'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("smaller", "message"),
    [
        ({"vocab_size": 100}, "--reference: it knows 100 tokens, and the policy writes"),
        ({"n_positions": 16}, "and --reference 16 positions"),
    ],
)
def test_evaluate_refuses_a_reference_that_cannot_read_what_the_policy_writes(
    policies: tuple[str, str],
    prompts: str,
    tmp_path: Path,
    smaller: dict[str, int],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reference = str(save_policy(tmp_path / "small", **smaller))
    arguments = ["--reference", reference, "--prompts", prompts, "--server", "127.0.0.1:1", "--reward", "m"]
    assert cli.main(["evaluate", "--policy", policies[0], *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--policy", "x", "--reference", "y", "--prompts", "z"], "--reward is missing"),
        (["evaluate", "--policy", "x", "--like", "nowhere"], "no config file at nowhere/config.toml"),
        (["sample", "x", "--prompt", "a", "--limit", "0"], "--limit must be at least 1"),
        (["sample", "x", "--prompt", "a", "--reward", "m", "--keep-above", "nan"], "--keep-above must be a number"),
        (["sample", "x", "--prompt", "a", "--output", "no/where.jsonl"], "no/where.jsonl cannot be written"),
        (["sample", "x", "--prompt", "a", "--seed", "-1"], "--seed must not be negative"),
        (["sample", "x", "--prompt", "a", "--temperature", "nan"], "--temperature above 0"),
        (["sample", "x", "--prompt", "a", "--reward", "m", "--prompt-template", "Q:"], "would not see the prompt"),
        (["sample", "x", "--prompt", "a", "--best-of", "4"], "name a reward model with --reward"),
        (["sample", "x", "--prompt", "a", "--calibrated"], "how completions are scored: name a reward model with"),
        (["sample", "x", "--prompt", "a", "--truncation", "keep_end"], "name a reward model with --reward"),
        (["sample", "x", "--prompt", "a", "--where", "split=train"], "--field and --where are for the rows of a file"),
        (["sample", "x", "--prompt", "a", "--best-of", "4", "--completions", "2", "--reward", "m"], "leave --compl"),
        (
            ["evaluate", "--policy", "x", "--reference", "y", "--prompts", "z", "--reward", "m", "--count", "0"],
            "--max-prompt-tokens and --count must be at least 1",
        ),
        (
            ["evaluate", "--policy", "x", "--reference", "y", "--prompts", "z", "--reward", "m", "--seed", "-1"],
            "--seed must not be negative",
        ),
        (
            ["evaluate", "--policy", "x", "--reference", "y", "--prompts", "z", "--reward", "m", "--empty-score=nan"],
            "--empty-score must be a finite number",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_what_was_sampled_before_stays_until_all_is_written_anew(
    server: FakeServer, policies: tuple[str, str], prompts: str, tmp_path: Path
) -> None:
    """A misspelt policy, or a server that refuses at the last batch, must not cost the file of last night."""
    kept = tmp_path / "kept.jsonl"
    kept.write_text("last night's\n", encoding="utf-8")
    options = ["--prompts", prompts, "--max-response-tokens", "6", "--json", "--output", str(kept)]
    assert cli.main(["sample", str(tmp_path / "nowhere"), *options]) != 0
    scored = [*options, "--server", server.address, "--reward", "length@stable", "--batch-size", "1"]
    server.will(usual, usual, as_version(2))
    assert cli.main(["sample", policies[0], *scored]) != 0
    assert kept.read_text(encoding="utf-8") == "last night's\n"
    assert 1 <= len(read_jsonl(tmp_path / "kept.jsonl.partial")) < 5

    assert cli.main(["sample", policies[0], *scored]) == 0
    assert len(read_jsonl(kept)) == 5
    assert not (tmp_path / "kept.jsonl.partial").exists()


def test_nobody_answers(policies: tuple[str, str], prompts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeServer()
    server.stop()
    monkeypatch.setattr("ppo_client.commands.evaluate.RewardClient", lambda server: _impatient(server))
    arguments = ["--prompts", prompts, "--server", server.address, "--reward", "length@1"]
    assert cli.main(["evaluate", "--policy", policies[0], "--reference", policies[1], *arguments]) == 75


def _impatient(server: str) -> object:
    from ppo_client import RewardClient

    return RewardClient(server, timeout_s=0.5)
