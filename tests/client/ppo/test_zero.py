"""With DeepSpeed a run learns what it learns without, in all stages of ZeRO; what contradicts a run is refused."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from client.ppo.in_two import run_in_two
from client.ppo.sharded_checks import (
    check_ended_the_same,
    check_goes_on_alone,
    check_same_as_alone,
    make_inputs,
    printed_shares,
    undo_last_step,
)
from client.ppo.sharded_settings import SHARDED, settings
from tiny_policies import FakeRewards, make_config

from ppo_client.ppo import PPOTrainer
from ppo_client.ppo.errors import ConfigError
from ppo_client.ppo.sharding import make_accelerator
from ppo_client.ppo.zero import engine_settings

needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason='needs pip install "deepspeed>=0.19.8"')

KINDS = [kind for kind in SHARDED if kind not in ("two-rates", "saved-first")]
STAGES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "stage-1": ({"stage": 1}, ["decoder", "lora", "stopped"]),
    "stage-2": ({"stage": 2}, KINDS),
    # Parameters this small would stay whole.
    "stage-3": ({"stage": 3, "stage3_param_persistence_threshold": 0}, KINDS),
    "offloaded": ({"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": False}}, ["decoder", "lora"]),
}
"""DeepSpeed's `zero_optimization`, and the kinds of runs that are tried with it"""


def run_zero(folder: Path, stage: str, *kinds: str) -> str:
    """The runs of `kinds` in `folder`, begun or gone on with by two processes."""
    given = {"zero_optimization": STAGES[stage][0], "gradient_clipping": "auto", "train_batch_size": "auto"}
    path = folder / "deepspeed.json"
    path.write_text(json.dumps(given), encoding="utf-8")
    environment = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path),
        "DS_ACCELERATOR": "cpu",
    }
    return run_in_two("zero_processes.py", str(folder), *kinds, environment=environment)


@pytest.fixture(scope="module", params=STAGES)
def zero(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A folder for each kind, with a run that two processes made; the stage; and what they printed."""
    folder, stage = tmp_path_factory.mktemp(request.param), request.param
    kinds = STAGES[stage][1]
    for kind in kinds:
        make_inputs(folder / kind, kind)
    return folder, stage, run_zero(folder, stage, *kinds)


@needs_deepspeed
def test_a_run_learns_what_it_learns_without(tmp_path: Path, zero: tuple[Path, str, str]) -> None:
    folder, stage, _ = zero
    for kind in STAGES[stage][1]:
        AcceleratorState._reset_state(reset_partial_state=True)
        check_same_as_alone(folder / kind, tmp_path / kind, kind)


@needs_deepspeed
def test_each_process_has_half_of_the_moments(zero: tuple[Path, str, str]) -> None:
    for kind in STAGES[zero[1]][1]:
        shares = printed_shares(zero[2], kind)
        assert sum(shares) == pytest.approx(1.0, abs=0.1)  # some is padding
        assert max(shares) < 0.55


@needs_deepspeed
def test_resumed_a_run_is_the_same_bit_by_bit(zero: tuple[Path, str, str]) -> None:
    folder, stage, _ = zero
    kinds = STAGES[stage][1]
    ended = undo_last_step(folder, kinds)
    run_zero(folder, stage, *kinds)
    check_ended_the_same(folder, ended)


@needs_deepspeed
def test_without_deepspeed_a_run_goes_on_as_well(zero: tuple[Path, str, str], tmp_path: Path) -> None:
    check_goes_on_alone(shutil.copytree(zero[0] / "decoder" / "run", tmp_path / "run"))


@needs_deepspeed
@pytest.mark.parametrize("stage", ["stage-2", "stage-3"])
def test_with_deepspeed_a_run_goes_on_that_was_begun_without(tmp_path: Path, stage: str) -> None:
    folder = make_inputs(tmp_path / "together" / "decoder", "decoder")
    PPOTrainer(settings(folder, "decoder"), FakeRewards()).train()
    undo_last_step(folder.parent, ["decoder"])
    run_zero(folder.parent, stage, "decoder")
    AcceleratorState._reset_state(reset_partial_state=True)
    check_same_as_alone(folder, tmp_path / "alone", "decoder")


def test_the_run_decides_what_is_left_to_it(folder: Path) -> None:
    given = {"zero_optimization": {"stage": 2}, "gradient_accumulation_steps": "auto", "train_batch_size": "auto"}
    config = make_config(folder, ppo={"max_grad_norm": 0.5}, train={"mixed_precision": "bf16"})
    assert engine_settings(given, config) == {
        "zero_optimization": {"stage": 2},
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.5,
        "train_micro_batch_size_per_gpu": 1,
        "train_batch_size": "auto",
        "zero_force_ds_cpu_optimizer": False,
        "torch_autocast": {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []},
    }
    unclipped = make_config(folder, ppo={"max_grad_norm": float("inf")})
    assert engine_settings(given, unclipped)["gradient_clipping"] == 0.0
    assert "torch_autocast" not in engine_settings(given, unclipped)


def test_a_critic_with_a_rate_of_its_own_is_refused(folder: Path) -> None:
    config = make_config(folder, critic={"kind": "separate", "learning_rate": 1e-4})
    with pytest.raises(ConfigError, match=r"critic\.learning_rate is not for DeepSpeed"):
        engine_settings({"zero_optimization": {"stage": 2}}, config)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"gradient_accumulation_steps": 4},
            r"gradient_accumulation_steps = 4, which ppo.micro_batch_size decides \(1\)",
        ),
        (
            {"gradient_clipping": 0.3},
            r"gradient_clipping = 0.3, which ppo.max_grad_norm decides \(1.0\): leave it out",
        ),
        ({"train_batch_size": 64}, "train_batch_size = 64, which ppo.batch_size decides"),
        ({"optimizer": {"type": "Adam"}}, "optimizer, which ppo.learning_rate and what follows it decide"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler, which ppo.schedule decide"),
        ({"bf16": {"enabled": True}}, "bf16, which train.mixed_precision decides"),
        ({"zero_optimization": {"stage": 0}}, "zero_optimization.stage = 0: it must be 1, 2 or 3"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "offload_param.device = nvme"),
    ],
    ids=str,
)
def test_what_contradicts_a_run_is_refused(folder: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine_settings({"zero_optimization": {"stage": 2}, **given}, make_config(folder))


@pytest.mark.parametrize(("found", "message"), [(None, "not installed"), ("0.18.3", "gradients that are not finite")])
def test_a_deepspeed_that_will_not_do_is_refused(
    monkeypatch: pytest.MonkeyPatch, found: str | None, message: str
) -> None:
    def version(name: str) -> str:
        if found is None:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr("ppo_client.ppo.zero.version", version)
    with pytest.raises(ConfigError, match=message):
        make_accelerator("no")
