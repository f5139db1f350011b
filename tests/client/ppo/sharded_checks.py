"""How runs whose learner is shared out are started, and held against runs in one process."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from client.ppo.sharded_settings import SHARDED, settings
from safetensors.torch import load_file
from tiny_policies import FakeRewards, read_jsonl, save_id_prompts, save_policy, without_times

from ppo_client.ppo import PPOTrainer

_FIRST_STEP = ("policy_loss", "value_loss", "kl", "entropy", "approx_kl", "explained_variance", "score_mean")


def make_inputs(folder: Path, kind: str) -> Path:
    folder.mkdir(parents=True)
    save_policy(folder / "policy", SHARDED[kind][0])
    save_id_prompts(folder / "prompts.jsonl")
    return folder


def printed_shares(output: str, kind: str) -> list[float]:
    """Of what learns, how much each of the two processes said it has."""
    shares = [float(share) for share in re.findall(rf"^{kind} (\S+)$", output, re.MULTILINE)]
    assert len(shares) == 2, output
    return shares


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Of policy and critic, as the run left them."""
    places = sorted((folder / "run" / "policy").glob("*.safetensors"))
    assert len(places) == 2
    return {f"{place.name}/{name}": tensor for place in places for name, tensor in load_file(place).items()}


def check_same_as_alone(shared_out: Path, alone: Path, kind: str) -> None:
    """`shared_out` has a run of two processes; the same is made here in `alone`."""
    one = make_inputs(alone, kind)
    PPOTrainer(settings(one, kind), FakeRewards()).train()
    together, expected = (read_jsonl(place / "run" / "metrics.jsonl") for place in (shared_out, one))
    assert [row["step"] for row in together] == [1, 2, 3]
    for name in _FIRST_STEP:
        assert together[0][name] == pytest.approx(expected[0][name], abs=1e-5), name
    found, weights = tensors(shared_out), tensors(one)
    assert found.keys() == weights.keys()
    start = load_file(one / "policy" / "model.safetensors")
    before = {f"model.safetensors/{name}": tensor for name, tensor in start.items()}
    moved = [name for name in found if name in before and not torch.equal(found[name], before[name])]
    assert moved or kind == "lora"
    if kind == "bf16":  # after a step the rounding of a sum decides what is sampled
        return
    for ours, theirs in zip(without_times(together), without_times(expected), strict=True):
        if "critic_gradient_norm" in theirs.keys() - ours.keys():  # DeepSpeed's norm is of policy and critic
            del theirs["gradient_norm"], theirs["critic_gradient_norm"]
        for name, value in theirs.items():
            if isinstance(value, float):
                assert ours[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
            else:
                assert ours[name] == value, name
    assert all(torch.allclose(found[name], weights[name], atol=1e-4) for name in weights)


Ended = dict[str, tuple[dict[str, torch.Tensor], list[dict[str, Any]]]]


def undo_last_step(folder: Path, kinds: Iterable[str]) -> Ended:
    """Takes the runs in `folder` back to their second checkpoint; what they had come to."""
    ended = {kind: (tensors(folder / kind), read_jsonl(folder / kind / "run" / "metrics.jsonl")) for kind in kinds}
    for kind in kinds:
        shutil.rmtree(folder / kind / "run" / "checkpoints" / "step-000003")
        shutil.rmtree(folder / kind / "run" / "policy")
    return ended


def check_ended_the_same(folder: Path, ended: Ended) -> None:
    """Bit by bit."""
    for kind, (expected, rows) in ended.items():
        found = tensors(folder / kind)
        assert all(torch.equal(found[name], expected[name]) for name in expected), kind
        assert without_times(read_jsonl(folder / kind / "run" / "metrics.jsonl")) == without_times(rows)


def check_goes_on_alone(run: Path) -> None:
    """The copy `run` of a run of two processes makes its third step in this one, nearly as it did."""
    expected = read_jsonl(run / "metrics.jsonl")[2]
    shutil.rmtree(run / "checkpoints" / "step-000003", ignore_errors=True)
    PPOTrainer.resume(run, FakeRewards()).train()
    found = read_jsonl(run / "metrics.jsonl")[2]
    for name in ("policy_loss", "value_loss", "kl", "gradient_norm"):
        assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5), name
