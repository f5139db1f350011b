"""Versions' files on disk, named by their digest. A folder is there as a whole or not at all, whatever dies when.

root/<digest>/              one version's files, read-only, with `contents.txt` and `reward_model.json`, and with the
                            `split.json` that its training left
root/.incoming/<random>/    being copied in, or being deleted; not visible to readers
root/.lock                  held shared while copying in, exclusively while deleting
root/.fetching/<digest>     held by the one who fetches that version from the shared store

Beside a shared store the folder is its cache: what is registered goes there too, what is missing comes from there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from rm_server.errors import ArtifactUnreadable, BrokenVersion, DigestMismatch, StorageFull
from rm_server.registry.copying import copy_from, copy_in, sync
from rm_server.registry.digest import CONTENTS_NAME, Contents, FileEntry, canonical_manifest, hash_file
from rm_server.registry.file_lock import lock
from rm_server.registry.layout import version_files
from rm_server.registry.manifest import FILE_NAME as MANIFEST_NAME
from rm_server.registry.manifest import Manifest, read_manifest
from rm_server.registry.names import check_digest, is_digest
from rm_server.registry.shared_store import NO_ROOM, SharedStore

_INCOMING = ".incoming"
_FETCHING = ".fetching"
_LOCK = ".lock"
_NOT_EMPTY = (errno.ENOTEMPTY, errno.EEXIST)


class ArtifactStore:
    """A folder of versions. Any number of threads and processes of one machine may use it at once.

    ``shared``: where other machines find the versions, too; without it the folder is all there is.
    """

    def __init__(self, root: Path, shared: SharedStore | None = None) -> None:
        self.root = root
        self.shared = shared
        self._incoming = root / _INCOMING
        self._incoming.mkdir(parents=True, exist_ok=True)

    def put(self, folder: Path, manifest: Manifest | None = None) -> str:
        """Copies a version's folder in and returns its digest; the same content again is no second copy.

        ``manifest`` stands in for the folder's own ``reward_model.json`` (which is otherwise required). Only the files
        that decide the scores, the manifest and the split are copied. A damaged copy that is there already is replaced.

        Raises ArtifactUnreadable, UnsupportedArtifact, or StorageFull; nothing is left behind then. CatalogUnavailable:
        the shared store is away; the copy here stays, for the next attempt or for who collects garbage.
        """
        with self.hold():
            manifest = manifest or read_manifest(folder)
            paths = version_files(folder, manifest.kind)
            self._check_room(str(folder), sum((folder / path).stat().st_size for path in paths))
            with self._staged(str(folder)) as staging:
                digest = copy_in(folder, paths, manifest, staging)
                self._publish(staging, digest)
            if self.shared is not None:
                self.shared.upload(self.root / digest, _read_contents(self.root / digest, digest))
        return digest

    def path(self, digest: str) -> Path:
        """The folder of a version's files, which are fetched from the shared store where they are not here.

        Raises ArtifactUnreadable when they are not to be had, and what `fetch` raises.
        """
        folder = self.root / check_digest(digest)
        if self.shared is not None and not folder.is_dir():
            self.fetch(digest)
        if not folder.is_dir():
            raise ArtifactUnreadable(
                f"{folder} is missing. Register the version's folder again, or put the files back from a backup."
            )
        return folder

    def fetch(self, digest: str) -> None:
        """Has a version here, from the shared store; of all threads and processes one fetches, the others wait.

        Every file is compared with the digest on its way. Raises ArtifactUnreadable (not there, or no shared store),
        DigestMismatch, StorageFull, CatalogUnavailable (the store is away); nothing is left behind then.
        """
        if self.shared is None:
            raise ArtifactUnreadable(f"{self.root} has no files of the digest {digest}, and there is no shared store.")
        with self.hold(), self._fetching(digest):
            if (self.root / digest).is_dir():
                return
            contents = self.shared.contents(digest)
            self._check_room(f"{self.shared}/{digest}", sum(entry.size for entry in contents.files))
            with self._staged(f"{self.shared}/{digest}") as staging:
                copy_from(self.shared, contents, staging)
                self._publish(staging, digest)

    def digests(self) -> tuple[str, ...]:
        """The digests of all versions that are in this folder, sorted."""
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

    def sweep(
        self, in_use: Callable[[], Collection[str]], *, min_age_s: float = 0.0, removes: bool = True
    ) -> tuple[str, ...]:
        """Removes every version of this folder that ``in_use()`` does not name, and returns their digests.

        ``in_use`` is asked while nobody can be between `put` and the catalog (who registers does both under `hold`).
        ``min_age_s``: younger ones stay. ``removes`` False: only says what it would remove.
        """
        with self._locked(fcntl.LOCK_EX):
            kept, newest = set(in_use()), time.time() - min_age_s
            unnamed = [digest for digest in self.digests() if digest not in kept and self._time(digest) <= newest]
            return tuple(digest for digest in unnamed if not removes or self._remove(digest))

    def size(self, digest: str) -> int:
        """Bytes of a version's files in this folder."""
        return sum(path.stat().st_size for path in (self.root / digest).rglob("*") if path.is_file())

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
            lock(file, how)
            yield

    @contextmanager
    def _fetching(self, digest: str) -> Iterator[None]:
        """Held by one at a time, of all threads and processes. Its file is there while somebody fetches or waits."""
        path = self.root / _FETCHING / digest
        path.parent.mkdir(exist_ok=True)
        while True:
            with path.open("ab") as file:
                lock(file, fcntl.LOCK_EX)
                if not _is_same_file(file.fileno(), path):
                    continue  # who held it before has removed it, and others may hold a new one
                try:
                    yield
                finally:
                    path.unlink()
                return

    @contextmanager
    def _staged(self, source: str) -> Iterator[Path]:
        """A folder to fill and publish. Whatever goes wrong, it is gone afterwards."""
        staging = Path(tempfile.mkdtemp(dir=self._incoming))
        try:
            yield staging
        except OSError as error:
            if error.errno in NO_ROOM:
                raise StorageFull(f"{self.root}: no room for {source}: {error.strerror}.") from error
            raise ArtifactUnreadable(f"{source} cannot be copied to {self.root}: {error}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _time(self, digest: str) -> float:
        """When a version came, in seconds since 1970. One without its contents is as old as can be."""
        try:
            return (self.root / digest / CONTENTS_NAME).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _check_room(self, source: str, needed: int) -> None:
        """Refuses early what cannot fit, so that a large upload does not fill the catalog's disk first."""
        free = shutil.disk_usage(self.root).free
        if needed > free:
            raise StorageFull(f"{self.root} has {free / 1e9:.2f} GB free, and {source} needs {needed / 1e9:.2f} GB.")

    def _publish(self, staging: Path, digest: str) -> None:
        while True:
            try:
                staging.rename(self.root / digest)
            except OSError as error:
                if error.errno not in _NOT_EMPTY:
                    raise
            else:
                sync(self.root)
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
            sync(self.root)
            return True
        finally:
            shutil.rmtree(grave)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


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
