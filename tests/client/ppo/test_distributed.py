"""Two processes do what one does: the same rows, the same losses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from client.ppo.two_processes import SETTINGS
from safetensors.torch import load_file
from tiny_policies import FakeRewards, make_config, read_jsonl, without_times

from ppo_client.ppo import PPOTrainer, distributed
from ppo_client.ppo.distributed import own_rows, raise_together
from ppo_client.ppo.errors import ConfigError, PPOError, RewardServiceAway


def run_in_two(folder: Path, *arguments: str) -> None:
    script = Path(__file__).with_name("two_processes.py")
    paths = [str(script.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        [*torchrun, str(script), str(folder), *arguments],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "ACCELERATE_USE_CPU": "true",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_two_processes_are_one(folder: Path) -> None:
    (folder / "one").mkdir()
    for name in ("policy", "prompts.jsonl"):
        (folder / "one" / name).symlink_to(folder / name)
    PPOTrainer(make_config(folder / "one", **SETTINGS), FakeRewards()).train()
    run_in_two(folder)
    two, one = (read_jsonl(place / "run" / "metrics.jsonl") for place in (folder, folder / "one"))
    assert [row["step"] for row in two] == [1, 2, 3]
    for ours, theirs in zip(without_times(two), without_times(one), strict=True):
        for name, value in theirs.items():
            if isinstance(value, float):
                assert ours[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
            else:
                assert ours[name] == value, name
    weights = [load_file(place / "run" / "policy" / "model.safetensors") for place in (folder, folder / "one")]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-4) for name in weights[0])

    # Resumed in two processes it is bit-identical.
    final = weights[0]
    shutil.rmtree(folder / "run" / "checkpoints" / "step-000003")
    run_in_two(folder, "resume")
    assert without_times(read_jsonl(folder / "run" / "metrics.jsonl")) == without_times(two)
    again = load_file(folder / "run" / "policy" / "model.safetensors")
    assert all(torch.equal(again[name], final[name]) for name in final)


def test_rows_are_shared_in_order() -> None:
    assert [*own_rows(8, 0, 2), *own_rows(8, 1, 2)] == list(range(8))
    with pytest.raises(ConfigError, match="9 episodes cannot be shared by 2 processes"):
        own_rows(9, 0, 2)


@pytest.mark.parametrize(
    ("there", "kind", "message"),
    [
        (RewardServiceAway("gone"), RewardServiceAway, "process 1: gone"),
        # Its class cannot be made of a text alone.
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), PPOError, "process 1: UnicodeDecodeError: 'utf-8'"),
    ],
)
def test_an_error_is_told_to_all_processes(
    monkeypatch: pytest.MonkeyPatch, there: Exception, kind: type[Exception], message: str
) -> None:
    told: list[Any] = []

    def gather(own: list[Any]) -> list[Any]:
        told.extend(own)
        return own

    monkeypatch.setattr(distributed, "gather_object", gather)
    with pytest.raises(type(there)) as caught:
        raise_together(Accelerator(), there)
    assert caught.value is there
    monkeypatch.setattr(distributed, "gather_object", lambda own: [*own, *told])
    with pytest.raises(kind, match=message) as elsewhere:
        raise_together(Accelerator(), None)
    assert type(elsewhere.value) is kind
