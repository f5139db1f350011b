"""Checkpoints on disk: written beside and renamed, so that one is whole or not there; the last few are kept.

OUTPUT/config.toml                      settings of the run
OUTPUT/checkpoints/step-000040/
    policy/                             loads with plain `from_pretrained`; its tokenizer; critic.safetensors;
                                        with LoRA the adapter alone, which peft loads, too
    optimizer.pt  processes.pt          tensors and plain values, read with weights_only
    state.json                          counters, β, gain and bias, the rewards' versions, what the inputs were
OUTPUT/best/                            the checkpoint that was evaluated best
OUTPUT/policy/                          the same as the last checkpoint's, once the run has ended
OUTPUT/policy-merged/                   beside it with `lora.merge`: adapter and base as one plain model
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError  # nothing is unpickled; it is what torch.load raises
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from ppo_client.ppo.errors import CheckpointError
from ppo_client.ppo.progress import Progress
from ppo_client.ppo.scores.normalize import ScoreNormalizer
from ppo_client.ppo.scores.versions import RewardVersion

_NAME = re.compile(r"(\.old-)?step-(\d{6,})")
"""What is being replaced has its old name with .old- before; there alone, the process was killed before the new one"""

_ZIP_WRITER = "inline_container.cc"
"""In what torch.save raises for a full disk, which it does not name"""


@dataclass(frozen=True, slots=True)
class RunState:
    """What a run knows beside its tensors, after `step` steps."""

    run: str
    step: int
    episodes: int
    kl_coefficient: float
    normalizer: ScoreNormalizer
    versions: tuple[RewardVersion, ...] = ()
    """The version of each model that the run learns from; empty before the first score"""
    inputs: dict[str, str] = field(default_factory=dict)
    """SHA-256 of what the run reads beside its checkpoint, by setting"""
    progress: Progress = field(default_factory=Progress)
    """What the evaluations so far have shown"""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of setting_changes.ADJUSTABLE, as of the last step"""

    @property
    def version(self) -> RewardVersion | None:
        """Of the first model; None before the first score."""
        return self.versions[0] if self.versions else None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RunState:
        plain = cls(**json.loads(text))
        versions: Any = plain.versions
        normalizer: Any = plain.normalizer
        progress: Any = plain.progress
        return replace(
            plain,
            versions=tuple(RewardVersion(**version) for version in versions),
            normalizer=ScoreNormalizer(**normalizer),
            progress=Progress(**progress),
        )


def checkpoint_path(output: Path, step: int) -> Path:
    return output / "checkpoints" / f"step-{step:06d}"


def clear_unless_begun(output: Path) -> bool:
    """Whether the run in `output` has learnt nothing yet; what it saved before its first step is then removed."""
    if any(step > 0 for step, _ in _numbered(output)):
        return False
    shutil.rmtree(output / "checkpoints", ignore_errors=True)
    return True


def latest_checkpoint(output: Path) -> Path:
    """The directory of the checkpoint with the most steps. Raises CheckpointError if there is none."""
    found = _checkpoints(output)
    if not found:
        raise CheckpointError(
            f"no checkpoint under {output / 'checkpoints'}, so there is nothing to resume: start the run again"
        )
    return found[-1]


def saved_steps(output: Path) -> list[int]:
    """Of the checkpoints that are there, in order."""
    return [step for step, _ in _numbered(output)]


def save_checkpoint(output: Path, step: int, write: Callable[[Path], None], keep: int) -> Path:
    """Has `write` fill a directory beside, then renames it to its place; removes all but the last `keep`."""
    place = checkpoint_path(output, step)
    write_directory(place, write)
    for old in _checkpoints(output)[:-keep]:
        shutil.rmtree(old)
    return place


def write_directory(place: Path, write: Callable[[Path], None]) -> None:
    """Puts a new directory at `place`, instead of the one that may be there, after all of it is on disk.

    Raises CheckpointError where there is no room, say; then what was there before is still there.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    _tidy(place.parent)
    beside, old = place.with_name(f".writing-{place.name}"), place.with_name(f".old-{place.name}")
    try:
        beside.mkdir()
        write(beside)
        share_as_folder(beside)
        for path in (*beside.rglob("*"), beside):
            _sync(path)
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and _ZIP_WRITER not in str(error):
            raise
        free_gb = shutil.disk_usage(place.parent).free / 1e9
        shutil.rmtree(beside, ignore_errors=True)
        raise CheckpointError(
            f"{place} could not be written ({error}); {free_gb:.2f} GB were free there. What was saved before is "
            "whole: make room, and go on with `ppo-client resume`"
        ) from error
    if place.exists():
        os.replace(place, old)
    os.replace(beside, place)
    _sync(place.parent)
    shutil.rmtree(old, ignore_errors=True)


def share_as_folder(folder: Path) -> None:
    """Lets those read the files who may read the folder: safetensors writes for the owner alone, and who evaluates a
    policy, or goes on from it, may be another user.
    """
    for path in folder.rglob("*.safetensors"):
        path.chmod(folder.stat().st_mode & 0o666)


def _tidy(parent: Path) -> None:
    """Ends what a process that was killed in `write_directory` had begun; of what it replaced, one stays."""
    for half in parent.glob(".writing-*"):
        shutil.rmtree(half)
    for old in parent.glob(".old-*"):
        place = parent / old.name.removeprefix(".old-")
        if place.exists():
            shutil.rmtree(old)
        else:
            os.replace(old, place)


def random_state() -> dict[str, Any]:
    """The state of the global random number generators of this process, as tensors and plain values."""
    name, keys, *numpy_rest = np.random.get_state(legacy=True)
    state = {
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys, dtype=np.int64)), *map(float, numpy_rest)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), int(position), int(has_gauss), cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def load_tensors(path: Path) -> Any:
    """What `torch.save` wrote, data only."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _checkpoints(output: Path) -> list[Path]:
    """Oldest first."""
    return [place for _, place in _numbered(output)]


def _numbered(output: Path) -> list[tuple[int, Path]]:
    """One of each step, by step; where one was being replaced, the new one."""
    places = sorted((output / "checkpoints").glob("*step-*"))  # ".old-" comes first
    found = {int(match[2]): place for place in places if (match := _NAME.fullmatch(place.name))}
    return sorted(found.items())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
