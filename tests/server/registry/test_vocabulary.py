"""Which versions read token ids alike: by the files that decide a tokenizer's ids, and no others."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path, PurePosixPath

import pytest

from rm_server.errors import ArtifactUnreadable
from rm_server.registry.digest import CONTENTS_NAME, Contents, FileEntry
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
        ({"vocab.txt": "a"}, {"vocab.txt": "a", "config.json": "x"}, True),
        ({"vocab.json": "a", "merges.txt": "m"}, {"vocab.json": "a", "merges.txt": "n"}, False),
        ({"vocab.json": "a"}, {"vocab.txt": "a"}, False),
        ({"rules.json": "a"}, {"rules.json": "b"}, True),  # neither has a vocabulary
        ({"rules.json": "a"}, ONE, False),
    ],
)
def test_the_same_vocabulary(one: dict[str, str], other: dict[str, str], is_same: bool) -> None:
    assert (digest(**one) == digest(**other)) is is_same


def artifact(root: Path, digest: str, **files: str) -> Path:
    folder = root / digest
    folder.mkdir()
    entries = []
    for path, text in files.items():
        (folder / path).write_text(text)
        entries.append(FileEntry(PurePosixPath(path), len(text), sha256(text.encode()).hexdigest()))
    (folder / CONTENTS_NAME).write_text(Contents("{}", tuple(entries)).to_text())
    return folder


def test_an_adapter_has_its_own_tokenizer_or_its_base_s(tmp_path: Path) -> None:
    base = artifact(tmp_path, "b" * 64, **{"tokenizer.json": "a"})
    adapter = {"adapter_config.json": "{}", "base.json": f'{{"version": "base@1", "digest": "{base.name}"}}'}
    plain = artifact(tmp_path, "c" * 64, **adapter)
    other = artifact(tmp_path, "d" * 64, **adapter, **{"tokenizer.json": "b"})
    one, as_base, apart = map(read_vocabulary_digest, (base, plain, other))
    assert one == as_base != apart
    assert "" not in (one, apart)


def test_a_folder_without_contents_is_said(tmp_path: Path) -> None:
    with pytest.raises(ArtifactUnreadable, match=r"contents\.txt"):
        read_vocabulary_digest(tmp_path)
