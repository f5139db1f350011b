"""The folder that a run fills: whose it is, and where an interrupted run goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from rm_server.errors import AlreadyExists, StorageFull
from rm_server.registry.manifest import FILE_NAME

CHECKPOINTS = "checkpoints"
_FINGERPRINT_FILE = "settings.json"
_ZIP_WRITER = "inline_container.cc"
"""In what torch.save raises for a full disk, which it does not name"""


def find_checkpoint(out: Path, fingerprint: dict[str, Any], resume: bool) -> Path | None:
    """The newest whole checkpoint in the folder, when the run goes on. Raises AlreadyExists."""
    if (out / FILE_NAME).exists():
        raise AlreadyExists(f"{out} already has a finished version; give another --out.")
    # trainer_state.json is written last: without it, the run was cut off while it saved.
    whole = [path.parent for path in out.glob(f"{CHECKPOINTS}/checkpoint-*/trainer_state.json")]
    if not whole:
        if out.exists() and any(path.name != CHECKPOINTS for path in out.iterdir()):
            raise AlreadyExists(f"{out} has other files in it; give another --out.")
        return None
    if not resume:
        raise AlreadyExists(f"{out} has an unfinished run; give --resume to go on with it, or another --out.")
    before = json.loads((out / CHECKPOINTS / _FINGERPRINT_FILE).read_text(encoding="utf-8"))
    if changed := sorted(name for name in {*before, *fingerprint} if before.get(name) != fingerprint.get(name)):
        raise AlreadyExists(
            f"{out} has an unfinished run with other settings ({', '.join(changed)}); "
            "repeat its command with --resume, or give another --out."
        )
    return max(whole, key=step_of)


def begin_folder(out: Path, fingerprint: dict[str, Any]) -> None:
    """Makes the folder and writes down whose it is."""
    checkpoints = out / CHECKPOINTS
    checkpoints.mkdir(parents=True, exist_ok=True)
    (checkpoints / _FINGERPRINT_FILE).write_text(json.dumps(fingerprint), encoding="utf-8")


@contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """Raises StorageFull for what torch and safetensors raise where they cannot write; other failures stay."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and _ZIP_WRITER not in str(error):
            raise
        raise StorageFull(
            f"{out} could not be written ({error}); {shutil.disk_usage(out).free / 1e9:.2f} GB are free there. "
            "Make room, and repeat the command with --resume."
        ) from error


def step_of(checkpoint: Path) -> int:
    """The number of steps that a checkpoint has behind it."""
    return int(checkpoint.name.removeprefix("checkpoint-"))
