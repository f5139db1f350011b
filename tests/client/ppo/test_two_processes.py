"""Two processes do what one does, to the rounding of a sum; resumed in two, a run is the same bit by bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from client.ppo.in_two import run_in_two
from client.ppo.two_processes import rewards, settings
from safetensors.torch import load_file
from tiny_policies import KINDS, read_jsonl, save_id_prompts, save_policy, without_times

from ppo_client.ppo import PPOTrainer

FIRST_STEP = ("policy_loss", "value_loss", "kl", "entropy", "approx_kl", "explained_variance", "score_mean")


def run(folder: Path, *arguments: str) -> None:
    run_in_two("two_processes.py", str(folder), *arguments, environment={"ACCELERATE_USE_CPU": "true"})


def make_inputs(folder: Path, kind: str) -> Path:
    folder.mkdir(parents=True)
    save_policy(folder / "policy", KINDS[kind][0])
    save_id_prompts(folder / "prompts.jsonl")
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Of policy and critic, as the run left them."""
    places = sorted((folder / "run" / "policy").glob("*.safetensors"))
    assert len(places) == 2
    return {f"{place.name}/{name}": tensor for place in places for name, tensor in load_file(place).items()}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each kind, with a run that two processes made."""
    folder = tmp_path_factory.mktemp("two")
    for kind in KINDS:
        make_inputs(folder / kind, kind)
    run(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_are_one(tmp_path: Path, two: Path, kind: str) -> None:
    one = make_inputs(tmp_path / "one", kind)
    PPOTrainer(settings(one, kind), rewards(kind)).train()
    together, alone = (without_times(read_jsonl(place / "run" / "metrics.jsonl")) for place in (two / kind, one))
    assert [row["step"] for row in together] == [1, 2, 3]
    assert any(row["dropped"] for row in alone) == (kind == "decoder")
    for name in FIRST_STEP:
        assert together[0][name] == pytest.approx(alone[0][name], abs=1e-5), name
    for ours, theirs in zip(together, alone, strict=True):
        for name, value in theirs.items():
            if isinstance(value, float):
                assert ours[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
            else:
                assert ours[name] == value, name
    ours, theirs = tensors(two / kind), tensors(one)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in theirs)


def test_resumed_in_two_processes_a_run_is_the_same_bit_by_bit(two: Path) -> None:
    before = {kind: (tensors(two / kind), read_jsonl(two / kind / "run" / "metrics.jsonl")) for kind in KINDS}
    for kind in KINDS:
        shutil.rmtree(two / kind / "run" / "checkpoints" / "step-000003")
        shutil.rmtree(two / kind / "run" / "policy")
    run(two, "resume")
    for kind, (expected, rows) in before.items():
        found = tensors(two / kind)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected), kind
        again = read_jsonl(two / kind / "run" / "metrics.jsonl")
        assert without_times(again) == without_times(rows)
