"""A training run against a real server that is killed in mid-step and resumed ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from running_server import Gate, RunningServer, make_rules_version, running
from safetensors.torch import load_file
from tiny_policies import read_jsonl, save_id_prompts, save_policy, without_times

from ppo_client.ppo.checkpoint import latest_checkpoint
from rm_server.config import EngineSettings

STEPS = 6
SETTINGS = (
    *("--set", "rollout.max_response_tokens=6", "--set", 'reward.input="token_ids"', "--set", "reward.timeout_s=120"),
    *("--set", "ppo.batch_size=8", "--set", "ppo.num_minibatches=2", "--set", "ppo.learning_rate=1e-3"),
    *("--set", "train.checkpoint_every_steps=1", "--set", "train.samples_every_steps=1"),
    *("--set", "train.tracking=[]"),
)


def ppo_client(*arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "ppo_client.cli", *arguments], env=environment)


def train(server: RunningServer, folder: Path, output: Path) -> subprocess.Popen[bytes]:
    return ppo_client(
        *("train", "--policy", str(folder / "policy"), "--prompts", str(folder / "prompts.jsonl")),
        *("--output", str(output), "--steps", str(STEPS), "--seed", "3"),
        *("--reward-target", server.app.grpc_address, "--reward-model", "even@1", *SETTINGS),
    )


def test_killed_and_resumed_is_the_same_bit_by_bit(tmp_path: Path, gate: Gate) -> None:
    save_policy(tmp_path / "policy", "llama")
    save_id_prompts(tmp_path / "prompts.jsonl")
    rules = make_rules_version(tmp_path / "even", {"type": "token_id_share", "modulus": 2, "residue": 0})
    # Without a cache: the killed run asks for what the whole one has asked for.
    engine = EngineSettings(workers=0, threads_per_worker=1, cache_items=0)
    with running(tmp_path / "home", engine=engine) as server:
        server.deploy("even", rules)
        assert train(server, tmp_path, tmp_path / "whole").wait(timeout=300) == 0

        killed = train(server, tmp_path, tmp_path / "killed")
        while not (tmp_path / "killed" / "checkpoints" / "step-000001").exists():
            assert killed.poll() is None
        gate.close()
        gate.wait_for_batch()  # its next scores are under way: the middle of a step
        killed.send_signal(signal.SIGKILL)
        assert killed.wait(timeout=60) == -signal.SIGKILL
        gate.open()
        assert len(read_jsonl(tmp_path / "killed" / "metrics.jsonl")) < STEPS
        assert ppo_client("resume", str(tmp_path / "killed")).wait(timeout=300) == 0

    whole, resumed = tmp_path / "whole", tmp_path / "killed"
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert without_times(read_jsonl(whole / name)) == without_times(read_jsonl(resumed / name))
    for name in ("model.safetensors", "critic.safetensors"):
        one, other = (load_file(latest_checkpoint(run) / "policy" / name) for run in (whole, resumed))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_signal_ends_a_run_that_waits_for_scores_at_once_with_a_checkpoint(tmp_path: Path, gate: Gate) -> None:
    save_policy(tmp_path / "policy", "llama")
    save_id_prompts(tmp_path / "prompts.jsonl")
    rules = make_rules_version(tmp_path / "even", {"type": "token_id_share", "modulus": 2, "residue": 0})
    engine = EngineSettings(workers=0, threads_per_worker=1, cache_items=0)
    with running(tmp_path / "home", engine=engine) as server:
        server.deploy("even", rules)
        run = train(server, tmp_path, tmp_path / "run")
        while not (tmp_path / "run" / "checkpoints" / "step-000001").exists():
            assert run.poll() is None
        gate.close()
        gate.wait_for_batch()
        run.send_signal(signal.SIGTERM)
        # Its call has 120 s, and the gate stays closed: it does not wait for the answer.
        assert run.wait(timeout=60) == 128 + signal.SIGTERM
        gate.open()
        done = len(read_jsonl(tmp_path / "run" / "metrics.jsonl"))
        assert latest_checkpoint(tmp_path / "run").name == f"step-{done:06d}"
        assert ppo_client("resume", str(tmp_path / "run")).wait(timeout=300) == 0
    assert [row["step"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")] == list(range(1, STEPS + 1))
