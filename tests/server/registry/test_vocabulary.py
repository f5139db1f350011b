"""Which versions read token ids alike: by the files that decide a tokenizer's ids, and no others."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from rm_server.errors import ArtifactUnreadable
from rm_server.registry.digest import Contents, FileEntry
from rm_server.registry.vocabulary import read_vocabulary_digest, vocabulary_digest

ONE = {"tokenizer.json": "a", "config.json": "x", "model.safetensors": "y"}


def digest(**files: str) -> str:
    return vocabulary_digest(
        Contents("{}", tuple(FileEntry(PurePosixPath(path), 1, sha256) for path, sha256 in files.items()))
    )


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (ONE, ONE, True),
        (ONE, ONE | {"config.json": "z", "model.safetensors": "z"}, True),
        (ONE, ONE | {"tokenizer_config.json": "t", "chat_template.jinja": "c"}, True),
        (ONE, ONE | {"vocab.txt": "a rest beside the whole"}, True),
        (ONE, ONE | {"tokenizer.json": "b"}, False),
        (ONE, {"base/tokenizer.json": "a", "adapter_config.json": "l"}, True),
        (ONE, {"base/tokenizer.json": "a", "tokenizer.json": "b"}, False),
        ({"vocab.txt": "a"}, {"vocab.txt": "a", "config.json": "x"}, True),
        ({"vocab.json": "a", "merges.txt": "m"}, {"vocab.json": "a", "merges.txt": "n"}, False),
        ({"vocab.json": "a"}, {"vocab.txt": "a"}, False),
        ({"rules.json": "a"}, {"rules.json": "b"}, True),  # neither has a vocabulary
        ({"rules.json": "a"}, ONE, False),
    ],
)
def test_the_same_vocabulary(one: dict[str, str], other: dict[str, str], is_same: bool) -> None:
    assert (digest(**one) == digest(**other)) is is_same


def test_a_folder_without_contents_is_said(tmp_path: Path) -> None:
    with pytest.raises(ArtifactUnreadable, match=r"contents\.txt"):
        read_vocabulary_digest(tmp_path)
