"""`evaluate`, and `sample` with a reward: what they print, against a server on a socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from client.fake_server import FakeServer
from tiny_policies import save_policy

from ppo_client import cli


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
    kept = sampled(
        capsys, policies[0], "--prompts", prompts, "--completions", "3", *scored, "--keep-above", str(threshold)
    )
    assert kept == [row for row in every if float(str(row["score"])) > threshold]
    assert kept


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "x", "--prompt", "a", "--best-of", "4"], "name a reward model with --reward"),
        (["sample", "x", "--prompt", "a", "--best-of", "4", "--completions", "2", "--reward", "m"], "leave --compl"),
        (
            ["evaluate", "--policy", "x", "--reference", "y", "--prompts", "z", "--reward", "m", "--count", "0"],
            "--count must be at least 1",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_nobody_answers(policies: tuple[str, str], prompts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeServer()
    server.stop()
    monkeypatch.setattr("ppo_client.ppo.evaluate_command.RewardClient", lambda server: _impatient(server))
    arguments = ["--prompts", prompts, "--server", server.address, "--reward", "length@1"]
    assert cli.main(["evaluate", "--policy", policies[0], "--reference", policies[1], *arguments]) == 75


def _impatient(server: str) -> object:
    from ppo_client import RewardClient

    return RewardClient(server, timeout_s=0.5)
