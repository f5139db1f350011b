"""A run that was killed, whenever that was, ends bit by bit where an uninterrupted one does."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState
from client.ppo import killed_run
from client.ppo.killed_run import MOMENTS, SETTINGS, settings
from safetensors.torch import load_file
from tiny_policies import KINDS, FakeRewards, make_config, read_jsonl, save_id_prompts, save_policy, without_times

from ppo_client.ppo import PPOTrainer
from ppo_client.ppo.checkpoint import latest_checkpoint, load_tensors
from ppo_client.ppo.errors import CheckpointError, ConfigError

# Forks of a process that has imported all that takes seconds, and has no threads.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["ppo_client.ppo.trainer"])


def make_inputs(folder: Path, kind: str) -> Path:
    save_policy(folder / "policy", KINDS[kind][0])
    save_id_prompts(folder / "prompts.jsonl")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def run(kind: str) -> Path:
        folder = make_inputs(tmp_path_factory.mktemp(kind), kind)
        PPOTrainer(settings(folder, kind), FakeRewards()).train()
        return folder / "run"

    return run


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert without_times(read_jsonl(one / name)) == without_times(read_jsonl(other / name))
    places = latest_checkpoint(one), latest_checkpoint(other)
    assert places[0].name == places[1].name
    tensors = [sorted(path.name for path in (place / "policy").glob("*.safetensors")) for place in places]
    assert tensors[0] == tensors[1]
    assert len(tensors[0]) == 2
    for name in tensors[0]:
        first, second = (load_file(place / "policy" / name) for place in places)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    optimizers = [load_tensors(place / "optimizer.pt")["state"] for place in places]
    for parameter, state in optimizers[0].items():
        assert all(torch.equal(tensor, optimizers[1][parameter][key]) for key, tensor in state.items())
    states = [(place / "state.json").read_text() for place in places]
    assert without_run_id(states[0]) == without_run_id(states[1])


def without_run_id(state: str) -> str:
    return "\n".join(line for line in state.splitlines() if '"run"' not in line)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_is_the_same_bit_by_bit(
    tmp_path: Path, uninterrupted: Callable[[str], Path], moment: str, kind: str
) -> None:
    expected = uninterrupted(kind)
    folder = make_inputs(tmp_path, kind)
    killed = PROCESSES.Process(target=killed_run.run, args=(folder, kind, moment))
    killed.start()
    killed.join(300)
    assert killed.exitcode == -9
    assert latest_checkpoint(folder / "run").name == "step-000002"
    logged = [row["step"] for row in read_jsonl(folder / "run" / "metrics.jsonl")]
    assert logged == ([1, 2, 3, 4] if moment == "saving" else [1, 2, 3])
    AcceleratorState._reset_state(reset_partial_state=True)
    PPOTrainer.resume(folder / "run", FakeRewards()).train()
    assert_same_run(folder / "run", expected)


def test_a_run_that_was_extended_goes_on_from_its_end(folder: Path) -> None:
    PPOTrainer(make_config(folder, **SETTINGS), FakeRewards()).train()
    shutil.copytree(folder / "policy", folder / "two" / "policy")
    shutil.copy(folder / "prompts.jsonl", folder / "two")
    short = {**SETTINGS, "train": {**SETTINGS["train"], "num_steps": 3}}
    PPOTrainer(make_config(folder / "two", **short), FakeRewards()).train()
    assert PPOTrainer.resume(folder / "two" / "run", FakeRewards(), ["train.num_steps=5"]).train().step == 5
    assert_same_run(folder / "run", folder / "two" / "run")


def test_a_run_that_began_with_an_adapter_learns_and_goes_on(folder: Path) -> None:
    PPOTrainer(make_config(folder, lora={"rank": 2}, train={"num_steps": 1}), FakeRewards()).train()
    (folder / "run").rename(folder / "first")
    sections = {"policy": {"model": str(folder / "first" / "policy")}, "critic": {"kind": "separate"}}
    PPOTrainer(make_config(folder, **sections), FakeRewards()).train()
    assert PPOTrainer.resume(folder / "run", FakeRewards(), ["train.num_steps=3"]).train().step == 3
    rows = read_jsonl(folder / "run" / "metrics.jsonl")
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert [abs(row["kl"]) > 1e-3 for row in rows] == [False, True, True]


def test_other_random_numbers_go_on_as_they_would_have(folder: Path) -> None:
    """A run draws none of the global ones itself; what people build into it may."""
    PPOTrainer(make_config(folder), FakeRewards()).train()
    expected = torch.rand(3)
    torch.manual_seed(12345)
    PPOTrainer.resume(folder / "run", FakeRewards(), ["train.num_steps=3"])
    assert torch.equal(torch.rand(3), expected)


def test_what_a_resume_was_told_holds_for_the_next(folder: Path) -> None:
    PPOTrainer(make_config(folder), FakeRewards()).train()
    extended = PPOTrainer.resume(folder / "run", FakeRewards(), ["train.num_steps=4"])
    extended.stop_after_step()
    assert extended.train().step == 3
    assert PPOTrainer.resume(folder / "run", FakeRewards()).train().step == 4


@pytest.mark.parametrize("controller", ["fixed", "adaptive", "scheduled"])
def test_what_steers_the_update_may_change_and_the_log_says_when(
    folder: Path, controller: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kl = {"controller": controller, "schedule_steps": 4}
    PPOTrainer(make_config(folder, kl=kl), FakeRewards()).train()
    told = ["kl.coefficient=0.4", "ppo.learning_rate=1e-4", "ppo.max_grad_norm=inf", "train.num_steps=4"]
    PPOTrainer.resume(folder / "run", FakeRewards(), told)  # and ended before its first step
    PPOTrainer.resume(folder / "run", FakeRewards()).train()
    rows = read_jsonl(folder / "run" / "metrics.jsonl")
    assert [row["learning_rate"] for row in rows] == [1e-3, 1e-3, 1e-4, 1e-4]
    assert rows[2]["kl_coefficient"] == (0.2 if controller == "scheduled" else 0.4)
    changed = ["kl.coefficient", "ppo.learning_rate", "ppo.max_grad_norm"]
    assert [[event["setting"] for event in row.get("events", ())] for row in rows] == [[], [], changed, []]
    assert "step 3: kl.coefficient is now 0.4, before 0.05; ppo.learning_rate is now" in capsys.readouterr().err
    PPOTrainer.resume(folder / "run", FakeRewards(), ["train.num_steps=5"]).train()
    assert "events" not in read_jsonl(folder / "run" / "metrics.jsonl")[-1]


@pytest.mark.parametrize("name", ["elsewhere", r"else\where '\""])
def test_a_run_that_was_moved_is_resumed_where_it_is(folder: Path, name: str) -> None:
    config = make_config(folder, train={"num_steps": 1})
    PPOTrainer(config, FakeRewards()).train()
    (folder / "run").rename(folder / name)
    assert PPOTrainer.resume(folder / name, FakeRewards(), ["train.num_steps=2"]).train().step == 2
    assert not (folder / "run").exists()
    assert len(read_jsonl(folder / name / "metrics.jsonl")) == 2


@pytest.mark.parametrize("changed", ["data.prompts", "policy.model"])
def test_a_run_does_not_go_on_with_other_inputs(folder: Path, changed: str) -> None:
    PPOTrainer(make_config(folder, train={"num_steps": 1}), FakeRewards()).train()
    if changed == "data.prompts":
        save_id_prompts(folder / "prompts.jsonl", seed=5)
    else:
        save_policy(folder / "policy", "llama", seed=9)
    with pytest.raises(CheckpointError, match=rf"what {changed} names is not what it was"):
        PPOTrainer.resume(folder / "run", FakeRewards())


def test_a_run_that_began_with_relative_paths_is_resumed_from_anywhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    PPOTrainer(make_config(Path()), FakeRewards()).train()
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    config = PPOTrainer.resume(Path("..") / "run", FakeRewards()).run.config
    assert config.policy.model == str(folder / "policy")
    assert config.data.prompts == str(folder / "prompts.jsonl")


def test_a_run_whose_learning_rate_ends_with_its_last_step_is_not_extended(folder: Path) -> None:
    PPOTrainer(make_config(folder, ppo={"schedule": "linear"}), FakeRewards()).train()
    with pytest.raises(ConfigError, match="linear schedule ends the learning rate"):
        PPOTrainer.resume(folder / "run", FakeRewards(), ["train.num_steps=4"])


def test_a_run_knows_its_folder_of_prompts_again(folder: Path) -> None:
    def save_prompts(last: int) -> None:
        rows = [{"prompt": [5, 6, number]} for number in (7, 8, last)]
        datasets.Dataset.from_list(rows).save_to_disk(folder / "prompts")

    save_prompts(9)
    config = make_config(folder, data={"prompts": str(folder / "prompts")}, train={"num_steps": 1})
    PPOTrainer(config, FakeRewards()).train()
    assert PPOTrainer.resume(folder / "run", FakeRewards(), ["train.num_steps=2"]).train().step == 2
    save_prompts(10)
    with pytest.raises(CheckpointError, match=r"what data\.prompts names is not what it was"):
        PPOTrainer.resume(folder / "run", FakeRewards())
