"""Versions' files where several servers reach them: any URL of fsspec (s3://, gs://, sftp://, …). Caches are elsewhere.

URL/<digest>/...            one version's files, with `reward_model.json`
URL/<digest>/contents.txt   written last: a version is there once this is whole, so a half upload is never seen

How a store is reached and with which credentials is fsspec's own affair: FSSPEC_S3_ENDPOINT_URL, FSSPEC_S3_KEY, … or a
file in ~/.config/fsspec; for S3 also what every AWS tool reads.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from rm_server.config import ConfigError
from rm_server.errors import ArtifactUnreadable, CatalogUnavailable, DigestMismatch, StorageFull
from rm_server.registry.digest import BLOCK_BYTES, CONTENTS_NAME, Contents
from rm_server.registry.layout import files_beside
from rm_server.registry.manifest import FILE_NAME as MANIFEST_NAME
from rm_server.registry.names import is_digest

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_RETRY_AFTER_S = 5.0


class SharedStore:
    """One place of a filesystem of fsspec. Constructing it connects to nothing. Thread-safe as fsspec is.

    Every method raises CatalogUnavailable when the store cannot be reached, with what it said. ConfigError: no such
    kind of store, or its package is not installed.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self._name = re.sub(r"//[^/@]*@", "//***@", url)
        is_local = url.startswith(("file:", "local:"))
        try:
            self._files, root = url_to_fs(url, **({"auto_mkdir": True} if is_local else {}))
        except (ImportError, ValueError) as error:
            raise ConfigError(f"artifacts are to be in {self._name}, which cannot be used: {error}") from error
        self._root = root.rstrip("/")

    def __str__(self) -> str:
        """The URL, without a password."""
        return self._name

    # --- reading ---

    def contents(self, digest: str) -> Contents:
        """What a version consists of. Raises ArtifactUnreadable when it is not there, DigestMismatch when damaged."""
        try:
            with self._translated():
                text = self._files.cat_file(self._path(digest, CONTENTS_NAME))
        except FileNotFoundError as error:
            raise ArtifactUnreadable(
                f"{self._name} has no files of the digest {digest}. Register the version's folder again."
            ) from error
        try:
            contents = Contents.from_text(text.decode())
        except ValueError as error:
            raise DigestMismatch(f"{self._name}/{digest}/{CONTENTS_NAME} is damaged: {error}.") from error
        if contents.digest != digest:
            raise DigestMismatch(f"{self._name}/{digest}/{CONTENTS_NAME} has the digest {contents.digest}.")
        return contents

    def blocks(self, digest: str, path: PurePosixPath | str) -> Iterator[bytes]:
        """A file's bytes, piece by piece. Raises ArtifactUnreadable when it is not there."""
        try:
            with self._translated():
                file = self._files.open(self._path(digest, path), "rb", block_size=BLOCK_BYTES * 8)
            with file:
                while True:
                    with self._translated():
                        block = file.read(BLOCK_BYTES)
                    if not block:
                        return
                    yield block
        except FileNotFoundError as error:
            raise ArtifactUnreadable(f"{self._name}/{digest}/{path} is missing.") from error

    def digests(self) -> tuple[str, ...]:
        """Of all versions that are there, as a whole or half uploaded, sorted."""
        try:
            with self._translated():
                self._files.invalidate_cache()
                names = {path.rstrip("/").rpartition("/")[2] for path in self._files.ls(self._root, detail=False)}
        except FileNotFoundError:
            return ()
        return tuple(sorted(filter(is_digest, names)))

    def sizes(self, digest: str) -> dict[str, int]:
        """Bytes of each file of a version that has arrived, by its path within the version."""
        with self._translated():
            self._files.invalidate_cache()
            found = self._files.find(self._path(digest), detail=True)
        start = len(self._path(digest)) + 1
        return {path[start:]: int(info["size"] or 0) for path, info in found.items()}

    def last_change(self, digest: str) -> datetime:
        """When the last file of a version arrived (UTC). Raises FileNotFoundError when there is none any more."""
        with self._translated():
            times: list[datetime] = [self._files.modified(self._path(digest, name)) for name in self.sizes(digest)]
        if not times:
            raise FileNotFoundError(f"{self._name}/{digest}")
        return max(time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC) for time in times)

    # --- writing ---

    def upload(self, folder: Path, contents: Contents) -> None:
        """Puts a version's folder there; what is there as a whole is not sent again.

        ``contents.txt`` is sent in any case: who collects garbage sees by its age that somebody needs the version.
        Raises StorageFull.
        """
        digest = contents.digest
        if not self._has_all(contents):
            for entry in contents.files:
                self._put(folder, digest, str(entry.path))
            for name in (MANIFEST_NAME, *files_beside(folder)):
                self._put(folder, digest, name)
        self._put(folder, digest, CONTENTS_NAME)

    def delete(self, digest: str) -> None:
        """Removes a version; ``contents.txt`` first, so that nobody finds a part of it whole."""
        with self._translated():
            contents = self._path(digest, CONTENTS_NAME)
            if self._files.exists(contents):
                self._files.rm_file(contents)
            self._files.rm(self._path(digest), recursive=True)

    def _has_all(self, contents: Contents) -> bool:
        try:
            self.contents(contents.digest)
        except (ArtifactUnreadable, DigestMismatch):
            return False
        there = self.sizes(contents.digest)
        return MANIFEST_NAME in there and all(there.get(str(entry.path)) == entry.size for entry in contents.files)

    def _put(self, folder: Path, digest: str, name: str) -> None:
        try:
            with self._translated():
                self._files.put_file(str(folder / name), self._path(digest, name))
        except FileNotFoundError as error:
            raise CatalogUnavailable(f"The artifact store {self._name} is not there: {_words(error)}") from error

    def _path(self, *parts: object) -> str:
        return "/".join((self._root, *map(str, parts)))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Each kind of store has exceptions of its own, of packages that may not even be installed."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise StorageFull(f"{self._name} is full; nothing was registered: {error.strerror}.") from error
            raise CatalogUnavailable(
                f"The artifact store {self._name} cannot be used now: {_words(error)}", retry_after_s=_RETRY_AFTER_S
            ) from error


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
