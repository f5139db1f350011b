"""A trained adapter as a folder to register: the adapter and its head as peft saves them, and the base in `base/`."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rm_server.backends.torch.lora_adapter import read_adapter
from rm_server.registry.layout import BASE_FOLDER, version_files
from rm_server.registry.lora import BASE_KIND


def save_adapter(out: Path, model: Any, base_name: str, base: Path, fresh_weights: Iterable[str]) -> None:
    """Writes a `PeftModel` into ``out``; afterwards the model has no adapter.

    ``base``: the checkpoint that training started from. Its files are copied as they are, so that adapters of one
    base share it. Where training drew weights (``fresh_weights``) that the adapter does not bring along, a pooler for
    example, the checkpoint lacks them, and the base is saved as it was trained on.
    """
    model.peft_config["default"].base_model_name_or_path = base_name
    model.save_pretrained(out, save_embedding_layers=False)
    (out / "README.md").unlink(missing_ok=True)  # an empty form of a model card
    target = out / BASE_FOLDER
    if set(fresh_weights) <= read_adapter(out).saved.keys():
        for path in _base_files(base):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(base / path, target / path)
    else:
        model.unload().save_pretrained(target)


def _base_files(base: Path) -> list[Path]:
    """A snapshot in the hub's cache consists of links out of it, which `version_files` refuses."""
    if any(path.is_symlink() for path in base.iterdir()):
        return [path.relative_to(base) for path in base.iterdir() if path.is_file()]
    return [Path(path) for path in version_files(base, BASE_KIND)]
