"""Whether token ids mean the same in two versions: a digest over the files that decide a tokenizer's ids."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

from rm_server.errors import ArtifactUnreadable
from rm_server.registry.digest import CONTENTS_NAME, Contents
from rm_server.registry.lora import base_folder, is_adapter

_WHOLE = "tokenizer.json"
"""Holds everything where it exists: vocabulary, merges, added tokens."""

_PARTS = ("vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", "*.model", "*.spm", "*.tiktoken")


def vocabulary_digest(contents: Contents) -> str:
    """SHA-256, lower-case hex; empty where there is no tokenizer: of rules, of an adapter that has its base's.

    Templates and settings beside the vocabulary do not count: they do not touch what comes as ids.
    """
    here = {entry.path.name: entry.sha256 for entry in contents.files if entry.path.parent == PurePosixPath()}
    if _WHOLE in here:
        return _digest({_WHOLE: here[_WHOLE]})
    parts = {name: sha256 for name, sha256 in here.items() if any(map(PurePosixPath(name).match, _PARTS))}
    return _digest(parts) if parts else ""


def read_vocabulary_digest(folder: Path) -> str:
    """Of a version's folder in the artifact store; an adapter's own tokenizer goes before its base's, as at its load.

    Raises ArtifactUnreadable, UnsupportedArtifact.
    """
    path = folder / CONTENTS_NAME
    try:
        own = vocabulary_digest(Contents.from_text(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ArtifactUnreadable(f"{path} cannot be read: {error}") from error
    return read_vocabulary_digest(base_folder(folder)) if not own and is_adapter(folder) else own


def _digest(files: dict[str, str]) -> str:
    return hashlib.sha256("".join(f"{name} {files[name]}\n" for name in sorted(files)).encode()).hexdigest()
