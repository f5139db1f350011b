"""Checkpoints are whole or not there, the last few are kept, and random states come back bit by bit."""

from __future__ import annotations

import os
import random
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ppo_client.ppo.checkpoint import (
    RunState,
    clear_unless_begun,
    latest_checkpoint,
    load_tensors,
    random_state,
    save_checkpoint,
    saved_steps,
    set_random_state,
    write_directory,
)
from ppo_client.ppo.errors import CheckpointError
from ppo_client.ppo.scores.normalize import ScoreNormalizer
from ppo_client.ppo.scores.versions import RewardVersion


def write_text(text: str) -> Callable[[Path], None]:
    def write(place: Path) -> None:
        (place / "text").write_text(text)

    return write


def test_the_last_few_are_kept_and_the_latest_is_found(tmp_path: Path) -> None:
    for step in (9, 10, 1_000_000):
        save_checkpoint(tmp_path, step, write_text(str(step)), keep=2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000010", "step-1000000"]
    assert (latest_checkpoint(tmp_path) / "text").read_text() == "1000000"


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        latest_checkpoint(tmp_path)


def test_a_writer_that_dies_leaves_the_old_one(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, write_text("whole"), keep=2)

    def dying(place: Path) -> None:
        (place / "text").write_text("half")
        raise KeyboardInterrupt

    for step in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, step, dying, keep=2)
        assert (latest_checkpoint(tmp_path) / "text").read_text() == "whole"
    save_checkpoint(tmp_path, 2, write_text("next"), keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000001", "step-000002"]


def test_of_a_run_that_has_learnt_nothing_a_new_one_finds_nothing(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 0, write_text("of other settings, perhaps"), keep=1)
    assert clear_unless_begun(tmp_path) is True
    assert saved_steps(tmp_path) == []


def test_a_process_killed_while_it_replaces_the_only_one_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 1, write_text("first"), keep=1)
    rename, left = os.replace, [1]

    def killed_after_the_first(source: Path, target: Path) -> None:
        if not left.pop():
            raise KeyboardInterrupt
        left.append(0)
        rename(source, target)

    monkeypatch.setattr(os, "replace", killed_after_the_first)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 1, write_text("again"), keep=1)
    monkeypatch.undo()
    assert not (tmp_path / "checkpoints" / "step-000001").exists()
    assert saved_steps(tmp_path) == [1]
    assert clear_unless_begun(tmp_path) is False
    assert (latest_checkpoint(tmp_path) / "text").read_text() == "first"
    save_checkpoint(tmp_path, 2, write_text("next"), keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000001", "step-000002"]


@pytest.mark.parametrize(
    "write",
    [
        lambda place: torch.save({"a": torch.zeros(20_000)}, place / "optimizer.pt"),
        lambda place: save_file({"a": torch.zeros(20_000)}, place / "model.safetensors"),
        lambda place: (place / "state.json").write_bytes(bytes(80_000)),
    ],
    ids=["torch", "safetensors", "plain"],
)
def test_a_disk_without_room_is_named_and_no_more_is_taken_of_it(tmp_path: Path, write: Callable[[Path], None]) -> None:
    save_checkpoint(tmp_path, 1, write_text("whole"), keep=2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))  # for a disk of that size
    try:
        with pytest.raises(CheckpointError, match=r"step-000002 could not be written .* GB were free there"):
            save_checkpoint(tmp_path, 2, write, keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
    assert (latest_checkpoint(tmp_path) / "text").read_text() == "whole"


def test_what_is_no_failure_of_the_disk_keeps_its_name(tmp_path: Path) -> None:
    def failing(place: Path) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side assert"):
        save_checkpoint(tmp_path, 1, failing, keep=2)


def test_a_directory_is_replaced(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write_directory(tmp_path / "policy", write_text(text))
    assert (tmp_path / "policy" / "text").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_who_may_read_the_folder_may_read_the_weights(tmp_path: Path) -> None:
    def write(place: Path) -> None:
        save_file({"a": torch.ones(2)}, place / "model.safetensors")  # for its owner alone

    write_directory(tmp_path / "policy", write)
    folder = (tmp_path / "policy").stat().st_mode
    assert (tmp_path / "policy" / "model.safetensors").stat().st_mode & 0o777 == folder & 0o666


@pytest.mark.parametrize("version", [None, RewardVersion("m", 3, "d")])
def test_the_state_is_read_back_exactly(version: RewardVersion | None) -> None:
    state = RunState("run", 7, 448, 0.1 + 0.2, ScoreNormalizer(1 / 3, -2 / 7), (version,) if version else ())
    assert RunState.from_json(state.to_json()) == state


def draws() -> tuple[float, float, list[float], list[float]]:
    return random.random(), random.gauss(0, 1), np.random.rand(2).tolist(), torch.randn(3).tolist()


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    draws()
    np.random.randn()  # leaves half a pair behind
    torch.save(random_state(), tmp_path / "rng.pt")
    expected = draws()
    draws()
    set_random_state(load_tensors(tmp_path / "rng.pt"))
    assert draws() == expected


def test_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("executed",)

    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tensors(tmp_path / "evil.pt")
