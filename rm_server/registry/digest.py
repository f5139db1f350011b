"""A version's digest: SHA-256 of a short text, its contents, that names everything which decides the raw scores.

The contents are stored beside the files, so that ``sha256sum contents.txt`` prints the digest. Another program computes
them from a version's folder in this way; every line ends with a newline, the encoding is UTF-8:

1. The line ``rm-version 1``.
2. The line ``manifest JSON``. JSON is the object of ``reward_model.json`` without ``golden`` and ``tolerance``, and
   without the fields that have their default (so that a field which a later release adds leaves old digests alone).
   Keys are sorted, separators are ``,`` and ``:`` without spaces, nothing beyond JSON's own rules is escaped.
   The defaults: template ``{prompt}{completion}``, append_eos false, trim_padding false, add_special_tokens true,
   max_tokens 0, truncation ``refuse``, label_index 0, transform ``raw_logit``, precision ``""``. ``kind`` has none.
3. For each file that decides the scores (``layout.version_files``), sorted by the bytes of its path:
   the line ``file SHA256 SIZE PATH``: lower-case hex, decimal bytes, path relative to the folder with ``/``.

Golden examples, tolerances, evaluations, licences and model cards are therefore no part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rm_server.errors import ArtifactUnreadable
from rm_server.registry.layout import version_files
from rm_server.registry.manifest import Manifest

CONTENTS_NAME = "contents.txt"
FORMAT = "rm-version 1"
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file: its path within the version's folder, size in bytes and SHA-256 (lower-case hex)."""

    path: PurePosixPath
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Contents:
    """What decides a version's raw scores. ``files`` are sorted by the bytes of their paths."""

    manifest_json: str
    files: tuple[FileEntry, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the text, lower-case hex."""
        return hashlib.sha256(self.to_text().encode()).hexdigest()

    def to_text(self) -> str:
        """The text that is hashed."""
        lines = [FORMAT, f"manifest {self.manifest_json}"]
        lines += [f"file {entry.sha256} {entry.size} {entry.path}" for entry in self.files]
        return "".join(f"{line}\n" for line in lines)

    @classmethod
    def from_text(cls, text: str) -> Contents:
        """Reads the text back. Raises ValueError when it is none."""
        lines = text.removesuffix("\n").split("\n")
        if len(lines) < 2 or lines[0] != FORMAT or not lines[1].startswith("manifest "):
            raise ValueError(f"does not begin with {FORMAT!r} and the manifest")
        return cls(lines[1].removeprefix("manifest "), tuple(_parse_file_line(line) for line in lines[2:]))


def _parse_file_line(line: str) -> FileEntry:
    word, sha256, size, path = line.split(" ", maxsplit=3)
    if word != "file":
        raise ValueError(f"{line!r} is not a file's line")
    return FileEntry(PurePosixPath(path), int(size), sha256)


def canonical_manifest(manifest: Manifest) -> str:
    """The manifest's part of the contents."""
    defaults = Manifest(kind=manifest.kind).score_deciding()
    content = manifest.score_deciding()
    kept = {name: value for name, value in content.items() if name == "kind" or value != defaults[name]}
    return json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def read_blocks(path: Path) -> Iterator[bytes]:
    """A file's bytes, piece by piece: weights may be larger than memory. Raises OSError."""
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def hash_file(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 (lower-case hex), read piece by piece. Raises OSError."""
    size, sha256 = 0, hashlib.sha256()
    for block in read_blocks(path):
        size += len(block)
        sha256.update(block)
    return size, sha256.hexdigest()


def contents_of(folder: Path, manifest: Manifest) -> Contents:
    """Reads and hashes every file that decides the scores.

    Raises ArtifactUnreadable for a missing or unreadable file, UnsupportedArtifact for a folder that is no version.
    """
    entries = []
    for path in version_files(folder, manifest.kind):
        try:
            size, sha256 = hash_file(folder / path)
        except OSError as error:
            raise ArtifactUnreadable(f"{folder / path} cannot be read: {error}") from error
        entries.append(FileEntry(path, size, sha256))
    return Contents(canonical_manifest(manifest), tuple(entries))


def digest_of(folder: Path, manifest: Manifest) -> str:
    """The digest of a version's folder, 64 lower-case hexadecimal digits. Reads every byte, every time.

    Raises ArtifactUnreadable for a missing or unreadable file, UnsupportedArtifact for a folder that is no version.
    """
    return contents_of(folder, manifest).digest
