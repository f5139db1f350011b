"""Copies a version's files into an empty folder, hashed in the same reading: the digest is that of the copy."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from safetensors import SafetensorError, safe_open

from rm_server.errors import ArtifactUnreadable, DigestMismatch
from rm_server.registry.digest import CONTENTS_NAME, Contents, FileEntry, canonical_manifest, read_blocks
from rm_server.registry.layout import SPLIT_FILE, files_beside
from rm_server.registry.manifest import FILE_NAME as MANIFEST_NAME
from rm_server.registry.manifest import Manifest, read_manifest, write_manifest
from rm_server.registry.shared_store import SharedStore


def copy_in(folder: Path, paths: Collection[PurePosixPath], manifest: Manifest, staging: Path) -> str:
    """From a folder, whatever happens to it meanwhile; returns the digest. Raises ArtifactUnreadable, OSError."""
    entries = []
    for path in paths:
        entries.append(_write_file(read_blocks(folder / path), path, staging))
        _check_safetensors(staging / path, str(folder / path))
    for name in files_beside(folder):
        _write_file(read_blocks(folder / name), PurePosixPath(name), staging)
    contents = Contents(canonical_manifest(manifest), tuple(entries))
    write_manifest(staging, manifest)
    _seal(staging, contents)
    return contents.digest


def copy_from(shared: SharedStore, contents: Contents, staging: Path) -> None:
    """From a shared store. Raises DigestMismatch for a file that is not the one whose digest it has, and OSError."""
    digest = contents.digest
    for entry in contents.files:
        if entry.path.is_absolute() or ".." in entry.path.parts:
            raise DigestMismatch(f"{shared}/{digest} names {entry.path}, which is outside of a version's folder.")
        arrived = _write_file(shared.blocks(digest, entry.path), entry.path, staging)
        if arrived != entry:
            raise DigestMismatch(
                f"{shared}/{digest}/{entry.path} has {arrived.size} bytes with the SHA-256 {arrived.sha256}; "
                f"{entry.size} bytes with {entry.sha256} were registered. Register the version's folder again."
            )
    _write_file(shared.blocks(digest, MANIFEST_NAME), PurePosixPath(MANIFEST_NAME), staging)
    if canonical_manifest(read_manifest(staging)) != contents.manifest_json:
        raise DigestMismatch(f"{shared}/{digest}/{MANIFEST_NAME} is not what the digest was computed from.")
    if SPLIT_FILE in shared.sizes(digest):
        _write_file(shared.blocks(digest, SPLIT_FILE), PurePosixPath(SPLIT_FILE), staging)
    _seal(staging, contents)


def _seal(staging: Path, contents: Contents) -> None:
    """Adds the contents, and waits until all of it is on disk."""
    (staging / CONTENTS_NAME).write_bytes(contents.to_text().encode())
    for path in staging.rglob("*"):
        if path.is_file():
            path.chmod(0o444)
        sync(path)
    staging.chmod(0o755)
    sync(staging)


def _write_file(blocks: Iterator[bytes], path: PurePosixPath, staging: Path) -> FileEntry:
    target = staging / path
    target.parent.mkdir(parents=True, exist_ok=True)
    size, sha256 = 0, hashlib.sha256()
    with target.open("wb") as file:
        for block in blocks:
            file.write(block)
            sha256.update(block)
            size += len(block)
    return FileEntry(path, size, sha256.hexdigest())


def _check_safetensors(copy: Path, source: str) -> None:
    """Reads the header only: it knows how long the file has to be."""
    if copy.suffix != ".safetensors":
        return
    try:
        with safe_open(copy, framework="numpy"):
            pass
    except SafetensorError as error:
        raise ArtifactUnreadable(f"{source} is not a whole safetensors file: {error}") from error


def sync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
