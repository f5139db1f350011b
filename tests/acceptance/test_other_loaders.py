"""The adapters as verl's and OpenRLHF's own code loads and calls them, each in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running_server import RunningServer, make_version, running

from bench.peers.environments import python_with
from ppo_client import RewardClient

ROOT = Path(__file__).parents[2]
PEERS = Path(__file__).parent / "peers"
VERL = ["verl==0.9.1"]
# What else it asks for (vLLM, DeepSpeed, flash-attn) is for GPUs; its rollout's reward path needs none of it.
OPENRLHF = ["--no-deps", "openrlhf==0.11.0"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("loaders")
    with running(root / "home") as server:
        server.deploy("helpfulness", make_version(root / "v1", 1))
        yield server


def python_of(name: str, requirements: list[str]) -> Path:
    try:
        return python_with(name, requirements)
    except RuntimeError as error:
        pytest.skip(f"{requirements[-1]} cannot be installed into an environment of its own: {str(error)[-300:]}")


def printed(python: Path, script: str, *arguments: str, **environment: str) -> Any:
    command = [python, PEERS / script, *arguments]
    # The environment sees our packages, and not what is installed in place.
    ours = {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, **ours, **environment}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def expected(server: RunningServer, prompts: list[str], completions: list[str]) -> list[float]:
    with RewardClient(server.app.grpc_address) as client:
        return client.score("helpfulness@1", prompts=prompts, completions=completions).values


def test_verl(server: RunningServer) -> None:
    found = printed(python_of("verl-loader", VERL), "verl_rewards.py", server.app.grpc_address, "helpfulness@stable")
    wanted = pytest.approx(expected(server, ["Hi"] * 2, ["a fox", "it it it"]), abs=1e-5)
    assert len(found["scores"]) == 4
    for way, scores in found["scores"].items():
        assert scores == wanted, way
    for way, failure in found["failed"].items():
        assert str(failure).startswith("RewardFailed: ModelNotFound"), (way, failure)
    assert str(found["late"]).startswith("RewardFailed: "), "verl's net would make 0.0 of a call that it gave up"


def test_openrlhf(server: RunningServer) -> None:
    python = python_of("openrlhf-loader", OPENRLHF)
    target = server.app.grpc_address
    logs = {"rm_version": 1.0, "rm_truncated": 0.0}
    prompt, answers = "Once upon a time", [", a fox.", ", it it it."]
    for content, prompts, completions in (
        ("query", [""] * 2, [prompt + answer for answer in answers]),
        ("split", [prompt] * 2, answers),
    ):
        found = printed(
            python, "openrlhf_rewards.py", RM_TARGET=target, RM_MODEL="helpfulness@stable", RM_CONTENT=content
        )
        values = expected(server, prompts, completions)
        for (reward, score, extra), value in zip(found, values, strict=True):
            assert reward == score == [pytest.approx(value, abs=1e-5)]
            assert {name: number for name, (number,) in extra.items()} == logs
    failed = printed(python, "openrlhf_rewards.py", RM_TARGET=target, RM_MODEL="nobody@1")
    assert str(failed).startswith("RewardFailed: ModelNotFound"), failed
