"""With FSDP a run learns what it learns without, half of the parameters in each of two processes; what is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from client.ppo.sharded_settings import SHARDED, settings
from safetensors.torch import load_file
from tiny_policies import FakeRewards, make_config, read_jsonl, save_id_prompts, save_policy, without_times
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from ppo_client.ppo import PPOTrainer
from ppo_client.ppo.errors import CheckpointError, ConfigError
from ppo_client.ppo.sharding import load_optimizer_state, make_accelerator
from ppo_client.ppo.start import start_run

FIRST_STEP = ("policy_loss", "value_loss", "kl", "entropy", "approx_kl", "explained_variance", "score_mean")


def make_inputs(folder: Path, kind: str) -> Path:
    folder.mkdir(parents=True)
    save_policy(folder / "policy", SHARDED[kind][0])
    save_id_prompts(folder / "prompts.jsonl")
    return folder


def run_sharded(folder: Path, *arguments: str) -> str:
    script = Path(__file__).with_name("sharded_processes.py")
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
    return done.stdout


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Of policy and critic, as the run left them."""
    places = sorted((folder / "run" / "policy").glob("*.safetensors"))
    assert len(places) == 2
    return {f"{place.name}/{name}": tensor for place in places for name, tensor in load_file(place).items()}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder for each kind, with a run that two processes made; and what they printed."""
    folder = tmp_path_factory.mktemp("sharded")
    for kind in SHARDED:
        make_inputs(folder / kind, kind)
    return folder, run_sharded(folder)


@pytest.mark.parametrize("kind", SHARDED)
def test_a_run_learns_what_it_learns_without(tmp_path: Path, sharded: tuple[Path, str], kind: str) -> None:
    one = make_inputs(tmp_path / "one", kind)
    PPOTrainer(settings(one, kind), FakeRewards()).train()
    together, alone = (read_jsonl(place / "run" / "metrics.jsonl") for place in (sharded[0] / kind, one))
    assert [row["step"] for row in together] == [1, 2, 3]
    for name in FIRST_STEP:
        assert together[0][name] == pytest.approx(alone[0][name], abs=1e-5), name
    for ours, theirs in zip(without_times(together), without_times(alone), strict=True):
        for name, value in theirs.items():
            if isinstance(value, float):
                assert ours[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
            else:
                assert ours[name] == value, name
    found, expected = tensors(sharded[0] / kind), tensors(one)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-4) for name in expected)
    start = load_file(one / "policy" / "model.safetensors")
    before = {f"model.safetensors/{name}": tensor for name, tensor in start.items()}
    moved = [name for name in found if name in before and not torch.equal(found[name], before[name])]
    assert moved or kind == "lora"


@pytest.mark.parametrize("kind", SHARDED)
def test_each_process_learns_half(sharded: tuple[Path, str], kind: str) -> None:
    shares = [float(line.split()[1]) for line in sharded[1].splitlines() if line.startswith(f"{kind} ")]
    assert len(shares) == 2
    assert sum(shares) == pytest.approx(1.0)
    assert max(shares) < 0.55


@pytest.mark.parametrize("kind", ["decoder", "tied", "encoder-decoder"])
def test_the_policy_loads_as_any(sharded: tuple[Path, str], kind: str) -> None:
    loader: Any = AutoModelForSeq2SeqLM if kind == "encoder-decoder" else AutoModelForCausalLM
    _, report = loader.from_pretrained(sharded[0] / kind / "run" / "policy", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_resumed_a_run_is_the_same_bit_by_bit(sharded: tuple[Path, str]) -> None:
    folder = sharded[0]
    before = {kind: (tensors(folder / kind), read_jsonl(folder / kind / "run" / "metrics.jsonl")) for kind in SHARDED}
    for kind in SHARDED:
        shutil.rmtree(folder / kind / "run" / "checkpoints" / "step-000003")
        shutil.rmtree(folder / kind / "run" / "policy")
    run_sharded(folder, "resume")
    for kind, (expected, rows) in before.items():
        found = tensors(folder / kind)
        assert all(torch.equal(found[name], expected[name]) for name in expected), kind
        assert without_times(read_jsonl(folder / kind / "run" / "metrics.jsonl")) == without_times(rows)


def test_without_fsdp_a_run_goes_on_as_well(sharded: tuple[Path, str], tmp_path: Path) -> None:
    run = shutil.copytree(sharded[0] / "decoder" / "run", tmp_path / "run")
    expected = read_jsonl(run / "metrics.jsonl")[2]
    shutil.rmtree(run / "checkpoints" / "step-000003", ignore_errors=True)
    PPOTrainer.resume(run, FakeRewards()).train()
    found = read_jsonl(run / "metrics.jsonl")[2]
    for name in ("policy_loss", "value_loss", "kl", "gradient_norm"):
        assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5), name


def test_a_state_by_number_cannot_be_shared_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start_run(make_config(folder), FakeRewards())
    monkeypatch.setattr("ppo_client.ppo.sharding.is_sharded", lambda learner: True)
    with pytest.raises(CheckpointError, match="written without FSDP"):
        load_optimizer_state(run.updater.model, run.updater.optimizer, run.updater.optimizer.state_dict())


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM is not supported"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
            "accelerate does without it here .processes: 1, device: cpu",
        ),
    ],
    ids=str,
)
def test_what_the_trainer_cannot_do_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # restored after the test
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        make_accelerator("no")
    AcceleratorState._reset_state(reset_partial_state=True)
