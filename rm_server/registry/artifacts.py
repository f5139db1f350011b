"""Versions' files on disk, named by their digest. A folder is there as a whole or not at all, whatever dies when.

root/<digest>/              one version's files, read-only, with `contents.txt` and `reward_model.json`
root/.incoming/<random>/    being copied in, or being deleted; not visible to readers
root/.lock                  held shared while copying in, exclusively while deleting
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from safetensors import SafetensorError, safe_open

from rm_server.errors import ArtifactUnreadable, BrokenVersion, DigestMismatch, StorageFull
from rm_server.registry.digest import Contents, FileEntry, canonical_manifest, hash_file, read_blocks
from rm_server.registry.layout import version_files
from rm_server.registry.manifest import FILE_NAME as MANIFEST_NAME
from rm_server.registry.manifest import Manifest, read_manifest, write_manifest
from rm_server.registry.names import check_digest, is_digest

CONTENTS_NAME = "contents.txt"
_INCOMING = ".incoming"
_LOCK = ".lock"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NOT_EMPTY = (errno.ENOTEMPTY, errno.EEXIST)


class ArtifactStore:
    """A folder of versions. Any number of threads and processes of one machine may use it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._incoming = root / _INCOMING
        self._incoming.mkdir(parents=True, exist_ok=True)

    def put(self, folder: Path, manifest: Manifest | None = None) -> str:
        """Copies a version's folder in and returns its digest; the same content again is no second copy.

        ``manifest`` stands in for the folder's own ``reward_model.json`` (which is otherwise required). Only the files
        that decide the scores and the manifest are copied. A damaged copy that is there already is replaced.

        Raises ArtifactUnreadable, UnsupportedArtifact, or StorageFull; nothing is left behind then.
        """
        with self.hold():
            manifest = manifest or read_manifest(folder)
            paths = version_files(folder, manifest.kind)
            self._check_room(folder, paths)
            staging = Path(tempfile.mkdtemp(dir=self._incoming))
            try:
                digest = _copy_in(folder, paths, manifest, staging)
                self._publish(staging, digest)
            except OSError as error:
                if error.errno in _NO_ROOM:
                    raise StorageFull(f"{self.root}: no room for {folder}: {error.strerror}.") from error
                raise ArtifactUnreadable(f"{folder} cannot be copied to {self.root}: {error}") from error
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        return digest

    def path(self, digest: str) -> Path:
        """The folder of a version's files. Raises ArtifactUnreadable when it is not there."""
        folder = self.root / check_digest(digest)
        if not folder.is_dir():
            raise ArtifactUnreadable(
                f"{folder} is missing. Register the version's folder again, or put the files back from a backup."
            )
        return folder

    def digests(self) -> tuple[str, ...]:
        """The digests of all versions that are there, sorted."""
        return tuple(sorted(path.name for path in self.root.iterdir() if is_digest(path.name)))

    def verify(self, digest: str) -> None:
        """Reads every byte of a version and compares it with the digest.

        Raises ArtifactUnreadable naming the missing or shortened file, DigestMismatch naming the first one that
        differs.
        """
        folder = self.path(digest)
        contents = _read_contents(folder, digest)
        if canonical_manifest(read_manifest(folder)) != contents.manifest_json:
            raise DigestMismatch(f"{folder / MANIFEST_NAME} is not what the digest {digest} was computed from.")
        for entry in contents.files:
            _verify_file(folder, entry)
        extra = set(version_files(folder, read_manifest(folder).kind)) - {entry.path for entry in contents.files}
        if extra:
            raise DigestMismatch(f"{folder / min(extra)} does not belong to the digest {digest}.")

    def delete(self, digest: str) -> bool:
        """Removes a version's files; False when there are none. Waits for copies under way."""
        with self._locked(fcntl.LOCK_EX):
            return self._remove(check_digest(digest))

    def sweep(self, in_use: Callable[[], Collection[str]]) -> tuple[str, ...]:
        """Removes every version that ``in_use()`` does not name, and returns their digests.

        ``in_use`` is asked while nobody can be between `put` and the catalog (who registers does both under `hold`).
        """
        with self._locked(fcntl.LOCK_EX):
            kept = set(in_use())
            return tuple(digest for digest in self.digests() if digest not in kept and self._remove(digest))

    def clean_temporary(self) -> int:
        """Removes what killed processes left half done, and returns how much; 0 while another process copies in."""
        try:
            with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
                leftovers = list(self._incoming.iterdir())
                for leftover in leftovers:
                    shutil.rmtree(leftover)
                return len(leftovers)
        except BlockingIOError:
            return 0

    @contextmanager
    def hold(self) -> Iterator[None]:
        """While it is held nothing is deleted. Shared; `put` holds it by itself. Not to be held around `delete`."""
        with self._locked(fcntl.LOCK_SH):
            yield

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder on the artifacts' disk for the time, `hold` included; a killed process's is cleaned away later."""
        with self.hold(), tempfile.TemporaryDirectory(dir=self._incoming) as folder:
            yield Path(folder)

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        # A descriptor of its own for each holder: flock belongs to the open file, and a killed process gives it back.
        with (self.root / _LOCK).open("ab") as file:
            fcntl.flock(file, how)
            yield

    def _check_room(self, folder: Path, paths: Collection[PurePosixPath]) -> None:
        """Refuses early what cannot fit, so that a large upload does not fill the catalog's disk first."""
        needed = sum((folder / path).stat().st_size for path in paths)
        free = shutil.disk_usage(self.root).free
        if needed > free:
            raise StorageFull(f"{self.root} has {free / 1e9:.2f} GB free, and {folder} needs {needed / 1e9:.2f} GB.")

    def _publish(self, staging: Path, digest: str) -> None:
        while True:
            try:
                staging.rename(self.root / digest)
            except OSError as error:
                if error.errno not in _NOT_EMPTY:
                    raise
            else:
                _sync(self.root)
                return
            try:
                self.verify(digest)
            except BrokenVersion:
                self._remove(digest)
            else:
                return

    def _remove(self, digest: str) -> bool:
        """Takes the folder out of sight in one step, then deletes it."""
        grave = Path(tempfile.mkdtemp(dir=self._incoming))
        try:
            (self.root / digest).rename(grave / digest)
        except FileNotFoundError:
            return False
        else:
            _sync(self.root)
            return True
        finally:
            shutil.rmtree(grave)


def _copy_in(folder: Path, paths: Collection[PurePosixPath], manifest: Manifest, staging: Path) -> str:
    """Copies and hashes in one reading, so the digest is that of the copy, whatever happens to the source."""
    entries = tuple(_copy_file(folder, path, staging) for path in paths)
    contents = Contents(canonical_manifest(manifest), entries)
    write_manifest(staging, manifest)
    (staging / CONTENTS_NAME).write_bytes(contents.to_text().encode())
    for path in staging.rglob("*"):
        if path.is_file():
            path.chmod(0o444)
        _sync(path)
    staging.chmod(0o755)
    _sync(staging)
    return contents.digest


def _copy_file(folder: Path, path: PurePosixPath, staging: Path) -> FileEntry:
    target = staging / path
    target.parent.mkdir(parents=True, exist_ok=True)
    size, sha256 = 0, hashlib.sha256()
    with target.open("wb") as file:
        for block in read_blocks(folder / path):
            file.write(block)
            sha256.update(block)
            size += len(block)
    if path.suffix == ".safetensors":
        _check_safetensors(target, folder / path)
    return FileEntry(path, size, sha256.hexdigest())


def _check_safetensors(copy: Path, source: Path) -> None:
    """Reads the header only: it knows how long the file has to be."""
    try:
        with safe_open(copy, framework="numpy"):
            pass
    except SafetensorError as error:
        raise ArtifactUnreadable(f"{source} is not a whole safetensors file: {error}") from error


def _read_contents(folder: Path, digest: str) -> Contents:
    path = folder / CONTENTS_NAME
    try:
        contents = Contents.from_text(path.read_bytes().decode())
    except (OSError, ValueError) as error:
        raise ArtifactUnreadable(f"{path} cannot be read: {error}") from error
    if contents.digest != digest:
        raise DigestMismatch(f"{path} has the digest {contents.digest}, not {digest}.")
    return contents


def _verify_file(folder: Path, entry: FileEntry) -> None:
    path = folder / entry.path
    try:
        size, sha256 = hash_file(path)
    except OSError as error:
        raise ArtifactUnreadable(f"{path} cannot be read: {error}") from error
    if size < entry.size:
        raise ArtifactUnreadable(f"{path} is truncated: {size} bytes of {entry.size}.")
    if sha256 != entry.sha256:
        raise DigestMismatch(f"{path} has the SHA-256 {sha256}, not {entry.sha256}: its content was changed.")


def _sync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
