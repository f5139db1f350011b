"""With FSDP a run learns what it learns without, half of the parameters in each of two processes; what is refused."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from accelerate.utils import InitProcessGroupKwargs
from client.ppo.in_two import run_in_two
from client.ppo.sharded_checks import (
    check_ended_the_same,
    check_goes_on_alone,
    check_same_as_alone,
    make_inputs,
    printed_shares,
    undo_last_step,
)
from client.ppo.sharded_settings import SHARDED
from tiny_policies import FakeRewards, make_config
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from ppo_client.ppo import sharding, zero
from ppo_client.ppo.errors import CheckpointError, ConfigError
from ppo_client.ppo.sharding import load_optimizer_state, make_accelerator
from ppo_client.ppo.start import start_run


def run_sharded(folder: Path, *arguments: str) -> str:
    return run_in_two("sharded_processes.py", str(folder), *arguments, environment={"ACCELERATE_USE_CPU": "true"})


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder for each kind, with a run that two processes made; and what they printed."""
    folder = tmp_path_factory.mktemp("sharded")
    for kind in SHARDED:
        make_inputs(folder / kind, kind)
    return folder, run_sharded(folder)


@pytest.mark.parametrize("kind", SHARDED)
def test_a_run_learns_what_it_learns_without(tmp_path: Path, sharded: tuple[Path, str], kind: str) -> None:
    check_same_as_alone(sharded[0] / kind, tmp_path / "one", kind)


@pytest.mark.parametrize("kind", SHARDED)
def test_each_process_learns_half(sharded: tuple[Path, str], kind: str) -> None:
    shares = printed_shares(sharded[1], kind)
    assert sum(shares) == pytest.approx(1.0)
    assert max(shares) < 0.55


@pytest.mark.parametrize("kind", ["decoder", "tied", "encoder-decoder"])
def test_the_policy_loads_as_any(sharded: tuple[Path, str], kind: str) -> None:
    loader: Any = AutoModelForSeq2SeqLM if kind == "encoder-decoder" else AutoModelForCausalLM
    _, report = loader.from_pretrained(sharded[0] / kind / "run" / "policy", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_resumed_a_run_is_the_same_bit_by_bit(sharded: tuple[Path, str]) -> None:
    ended = undo_last_step(sharded[0], SHARDED)
    run_sharded(sharded[0], "resume")
    check_ended_the_same(sharded[0], ended)


def test_without_fsdp_a_run_goes_on_as_well(sharded: tuple[Path, str], tmp_path: Path) -> None:
    check_goes_on_alone(shutil.copytree(sharded[0] / "decoder" / "run", tmp_path / "run"))


def test_a_state_by_number_cannot_be_shared_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start_run(make_config(folder), FakeRewards())
    monkeypatch.setattr("ppo_client.ppo.sharding.is_sharded", lambda learner: True)
    stepped = {**run.updater.optimizer.state_dict(), "state": {0: {"step": 1}}}
    with pytest.raises(CheckpointError, match="written without FSDP"):
        load_optimizer_state(run.updater.model, run.updater.optimizer, stepped)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM is not supported"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "over 4 steps .* leave it out; ppo.micro_batch_size says"),
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


@pytest.mark.parametrize("by_deepspeed", [False, True])
@pytest.mark.parametrize(
    ("patience_s", "waits_s"), [(600.0, 2400.0), (7200.0, 9000.0), (math.inf, 365 * 24 * 3600 + 1800.0)]
)
def test_processes_wait_for_one_that_waits_for_scores(
    folder: Path, monkeypatch: pytest.MonkeyPatch, patience_s: float, waits_s: float, by_deepspeed: bool
) -> None:
    """NCCL alone would abort them after 600 s, so that none could save what was learnt."""

    class NotMade(Exception):
        """What is looked at has been seen."""

    def accelerator(*, kwargs_handlers: list[InitProcessGroupKwargs], **_: Any) -> None:
        (processes,) = kwargs_handlers
        assert processes.to_kwargs() == {"timeout": timedelta(seconds=waits_s)}
        raise NotMade

    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", str(by_deepspeed).lower())
    monkeypatch.setattr(zero, "version", lambda name: zero._OLDEST)
    monkeypatch.setattr(zero if by_deepspeed else sharding, "Accelerator", accelerator)
    config = make_config(folder)
    with pytest.raises(NotMade):
        start_run(replace(config, reward=replace(config.reward, patience_s=patience_s)), FakeRewards())
