"""Which prompts a version has learnt from, as far as its files say: its own training's, and those of what it is of."""

from __future__ import annotations

from pathlib import Path

from rm_server.backends.composite import read_composite
from rm_server.registry.layout import SPLIT_FILE
from rm_server.registry.lora import base_folder, is_adapter
from rm_server.registry.manifest import Kind
from rm_server.training.preferences import read_split


def trained_groups(folder: Path, kind: Kind) -> frozenset[str]:
    """Their groups. The parts of a composite, and an adapter's base, are where a home has them.

    Raises BadData for a split that is none, and what `read_composite` and `base_folder` raise.
    """
    folders = [folder]
    if kind == "composite":
        folders += [folder.parent / part.digest for part in read_composite(folder).versions.values()]
    folders += [base_folder(adapter) for adapter in folders if is_adapter(adapter)]
    splits = [path / SPLIT_FILE for path in folders if (path / SPLIT_FILE).is_file()]
    return frozenset[str]().union(*(read_split(split)["train"] for split in splits))
