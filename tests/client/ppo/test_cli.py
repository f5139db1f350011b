"""The commands: what they print, what they refuse, and their exit status."""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tiny_models import EOS_ID, make_tokenizer
from tiny_policies import FakeRewards, make_config, read_jsonl, save_policy
from tokenizers.processors import TemplateProcessing

from ppo_client import cli
from ppo_client.client.catalog import Lease
from ppo_client.client.errors import InvalidFile, InvalidSelector, ModelNotFound, ServerUnreachable, VersionChanged
from ppo_client.commands import sft
from ppo_client.ppo import assembly, trainer
from ppo_client.ppo.config import PPOConfig
from ppo_client.ppo.config_file import load_config, to_toml
from ppo_client.ppo.models.sequences import Prompts


class Client(FakeRewards):
    """In the place of RewardClient."""

    closed = False
    ended = False
    error: Exception | None = None

    def submit(self, model: str, **texts: Any) -> Any:
        if self.error is not None:
            failed: Future[Any] = Future()
            failed.set_exception(self.error)
            return failed
        return super().submit(model, **texts)

    def register_run(self, model: str, *, lease_s: float | None = None, expected_digest: str | None = None) -> Lease:
        if self.error is not None:
            raise self.error
        if expected_digest not in (None, self.digest):
            raise VersionChanged("the digest is another")
        return Lease("run", model, self.version, self.digest, "", None, datetime.now(UTC), is_resumed=False)

    def end_run(self, model: str = "") -> None:
        self.ended = True

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    client = Client()
    monkeypatch.setattr(assembly, "connect", lambda reward, run: client)
    return client


@pytest.fixture
def config_path(folder: Path) -> Path:
    path = folder / "ppo.toml"
    path.write_text(to_toml(make_config(folder)), encoding="utf-8")
    return path


def test_train_and_resume(config_path: Path, client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    output = config_path.parent / "other"
    assert cli.main(["train", str(config_path), "--output", str(output), "--steps", "1", "--run", "exp-17"]) == 0
    assert "exp-17: 1 steps, 8 episodes; the policy is in" in capsys.readouterr().err
    assert client.closed
    assert client.ended
    assert cli.main(["resume", str(output), "--steps", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["run"], result["step"], result["reward_version"]) == ("exp-17", 2, 1)
    assert len(read_jsonl(output / "metrics.jsonl")) == 2


def test_a_run_that_another_process_was_told_to_stop_is_to_be_resumed(
    config_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trainer, "is_true_anywhere", lambda flag: True)
    assert cli.main(["train", str(config_path)]) == 128 + signal.SIGTERM
    assert "1 steps, 8 episodes; go on with `ppo-client resume" in capsys.readouterr().err
    assert not (config_path.parent / "run" / "policy").exists()
    monkeypatch.undo()
    monkeypatch.setattr(assembly, "connect", lambda reward, run: client)
    assert cli.main(["resume", str(config_path.parent / "run"), "--json"]) == 0
    assert not json.loads(capsys.readouterr().out)["stopped"]


def test_a_signal_that_comes_when_all_is_done_stops_nothing(
    config_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client, "end_run", lambda model: os.kill(os.getpid(), signal.SIGTERM))
    assert cli.main(["train", str(config_path)]) == 0
    assert "2 steps, 16 episodes; the policy is in" in capsys.readouterr().err


def test_show_config_prints_what_would_be_used(config_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--seed", "9", "--reward-target", "a:1", "--reward-target", "b:2", "--set", "kl.coefficient=0.5"]
    arguments += ["--output", 'runs/"📂\\']
    assert cli.main(["train", str(config_path), *arguments, "--show-config"]) == 0
    shown = config_path.with_name("shown.toml")
    shown.write_text(capsys.readouterr().out, encoding="utf-8")
    config = load_config(PPOConfig, shown)
    assert (config.train.seed, config.reward.targets, config.kl.coefficient) == (9, ("a:1", "b:2"), 0.5)
    assert config.train.output == 'runs/"📂\\'


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ServerUnreachable("nobody answers"), cli.ExitStatus.REWARD_SERVICE_AWAY),
        (ModelNotFound("no model `even`"), cli.ExitStatus.FAILED),
        (InvalidSelector("`even@` names no version"), cli.ExitStatus.USAGE),
        (InvalidFile("line 3 is not JSON"), cli.ExitStatus.USAGE),
    ],
)
def test_exit_status_when_scores_cannot_be_had(
    config_path: Path, client: Client, error: Exception, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    client.error = error
    assert cli.main(["train", str(config_path), "--set", "reward.patience_s=0"]) == status
    assert str(error) in capsys.readouterr().err
    assert (config_path.parent / "run" / "checkpoints" / "step-000000").is_dir()


def test_exit_status_when_the_version_changed(config_path: Path, client: Client) -> None:
    assert cli.main(["train", str(config_path), "--steps", "1"]) == 0
    client.version, client.digest = 2, "2" * 64
    assert cli.main(["resume", str(config_path.parent / "run"), "--steps", "2"]) == cli.ExitStatus.VERSION_CHANGED == 76


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "policy.model is missing"),
        (["train", "none.toml"], "no config file at none.toml"),
        (["train", "CONFIG", "--set", "ppo.batchsize=4"], "did you mean ppo.batch_size?"),
        (["train", "CONFIG", "--set", "rollout.temperature=0"], "a policy that samples"),
        (["train", "CONFIG", "--prompts", "none.jsonl"], "none.jsonl cannot be read: there is no such file"),
        (["train", "CONFIG", "--policy", "none"], "there is no directory none"),
        (["sft", "--model", "x"], "data, output missing: give --data --output"),
        (["sample", "x", "--prompt", "a", "--temperature", "0"], "--temperature above 0"),
    ],
)
def test_wrong_settings_have_their_own_status(
    config_path: Path, client: Client, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [str(config_path) if argument == "CONFIG" else argument for argument in arguments]
    assert cli.main(filled) == cli.ExitStatus.USAGE == 2
    assert message in capsys.readouterr().err
    assert not (config_path.parent / "run" / "config.toml").exists()


def test_no_server_is_named(
    config_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RM_TARGET", raising=False)
    assert cli.main(["train", str(config_path)]) == cli.ExitStatus.USAGE
    assert "RM_TARGET" in capsys.readouterr().err


def test_resume_where_there_is_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["resume", str(tmp_path)]) == cli.ExitStatus.FAILED
    assert "config.toml is missing" in capsys.readouterr().err


def test_sample_is_reproducible_and_reads_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = str(save_policy(tmp_path / "policy", "llama"))
    arguments = ["sample", policy, "--prompt", "the", "--completions", "3", "--max-response-tokens", "5", "--json"]
    outputs = []
    for seed in ("1", "1", "2"):
        assert cli.main([*arguments, "--seed", seed]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]
    rows = [json.loads(line) for line in outputs[0].split("\n") if line]
    assert [row["prompt"] for row in rows] == ["the"] * 3
    assert len({row["completion"] for row in rows}) > 1
    assert all(1 <= row["num_tokens"] <= 5 for row in rows)

    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"q": "one"}\n{"q": "two"}\n', encoding="utf-8")
    written = tmp_path / "out.txt"
    more = ["--prompts", str(prompts), "--field", "q", "--limit", "1", "--output", str(written)]
    assert cli.main(["sample", policy, *more]) == 0
    assert written.read_text(encoding="utf-8").startswith("one ▸ ")
    assert "two ▸" not in written.read_text(encoding="utf-8")


def test_an_encoder_decoder_reads_the_eos_that_its_tokenizer_adds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """T5 was trained with it; where the response goes on with the prompt, it is taken off."""
    read: dict[str, list[int]] = {}
    collate = Prompts.collate

    def noting(prompts: Any, pad_id: int, device: Any = None) -> Prompts:
        read[family] = list(prompts[0])
        return collate(prompts, pad_id, device)

    monkeypatch.setattr(Prompts, "collate", noting)
    for family in ("llama", "t5"):
        policy = save_policy(tmp_path / family, family)
        tokenizer = make_tokenizer()
        tokenizer._tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", EOS_ID)])
        tokenizer.save_pretrained(policy)
        assert cli.main(["sample", str(policy), "--prompt", "the end", "--max-response-tokens", "3"]) == 0
        assert capsys.readouterr().out.startswith("the end ▸ ")
    assert read["t5"] == [*read["llama"], EOS_ID]


@pytest.mark.parametrize("command", ["sft", "train", "resume", "evaluate", "sample", "score", "report"])
def test_help_shows_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([command, "--help"])
    assert left.value.code == 0
    assert f"examples:\n  ppo-client {command}" in capsys.readouterr().out


def test_help_of_all_commands_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "examples:\n  ppo-client train " in capsys.readouterr().out


def test_help_and_wrong_settings_wait_for_no_torch() -> None:
    code = (
        "import sys; from ppo_client import cli; "
        "status = cli.main(['train', '--set', 'ppo.gama=1']); "
        "sys.exit(status if 'torch' not in sys.modules else 99)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "did you mean ppo.gamma?" in done.stderr


def test_a_file_that_cannot_be_written_is_one_line_and_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def runs_on_a_full_disk(args: argparse.Namespace) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "policy/model.safetensors")

    monkeypatch.setattr(sft, "_run", runs_on_a_full_disk)
    assert cli.main(["sft", "--model", "m", "--data", "d", "--output", "o"]) == 1
    assert capsys.readouterr().err == "ppo-client sft: [Errno 28] No space left on device: 'policy/model.safetensors'\n"
