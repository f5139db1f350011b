"""Versions in a store that several machines share: seen only as a whole, checked on their way, fetched once.

The store is a folder behind fsspec's ``file://``, its ``memory://``, and, where s3fs and moto are installed, a server
that speaks S3 (tests/acceptance).
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from rm_server.config import ConfigError
from rm_server.errors import ArtifactUnreadable, CatalogUnavailable, DigestMismatch, StorageFull
from rm_server.registry import artifacts as artifacts_module
from rm_server.registry.artifacts import ArtifactStore
from rm_server.registry.home import Home, add_version, missing_artifacts, open_home
from rm_server.registry.manifest import GoldenExample, Manifest, read_manifest
from rm_server.registry.shared_store import SharedStore

from .conftest import MakeFolder


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty store."""
    if request.param == "file":
        yield f"file://{tmp_path}/shared"
        return
    yield "memory://shared/artifacts"
    fsspec.filesystem("memory").rm("/", recursive=True)


@pytest.fixture
def folder_url(tmp_path: Path) -> str:
    """A store that other processes see, and whose files the tests can spoil."""
    return f"file://{tmp_path}/shared"


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    return tmp_path / "shared"


def machine(tmp_path: Path, name: str, url: str) -> ArtifactStore:
    """The cache of one of several machines."""
    return ArtifactStore(tmp_path / name, SharedStore(url))


def leftovers(artifacts: ArtifactStore) -> list[Path]:
    fetching = artifacts.root / ".fetching"
    return [*(artifacts.root / ".incoming").iterdir(), *(fetching.iterdir() if fetching.exists() else ())]


# --- from one machine to another ---


def test_what_one_machine_registers_another_has(tmp_path: Path, url: str, checkpoint: MakeFolder) -> None:
    folder = checkpoint()
    (folder / "split.json").write_text('{"train": ["p"], "held_out": []}')
    digest = machine(tmp_path, "a", url).put(folder)
    other = machine(tmp_path, "b", url)
    assert other.digests() == ()
    assert other.path(digest) == tmp_path / "b" / digest
    other.verify(digest)
    assert other.digests() == (digest,)
    first = {path.name: path.read_bytes() for path in (tmp_path / "a" / digest).iterdir()}
    assert {path.name: path.read_bytes() for path in other.path(digest).iterdir()} == first
    assert "split.json" in first, "it is no part of the digest, and is kept all the same"
    assert not any(os.access(path, os.W_OK) for path in other.path(digest).iterdir()) or os.geteuid() == 0
    assert leftovers(other) == []


def test_what_is_cached_is_served_without_the_store(
    tmp_path: Path, folder_url: str, shared: Path, rules_folder: MakeFolder
) -> None:
    artifacts = machine(tmp_path, "a", folder_url)
    digest = artifacts.put(rules_folder())
    shared.rename(tmp_path / "away")
    artifacts.verify(digest)
    assert artifacts.path(digest).is_dir()


def test_the_contents_come_last_and_nothing_is_sent_twice(
    tmp_path: Path, url: str, checkpoint: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    put = SharedStore._put

    def noted(self: SharedStore, folder: Path, digest: str, name: str) -> None:
        sent.append(name)
        put(self, folder, digest, name)

    monkeypatch.setattr(SharedStore, "_put", noted)
    folder = checkpoint()
    machine(tmp_path, "a", url).put(folder)
    assert sent[-1] == "contents.txt"
    assert sorted(sent) == sorted({*sent, "config.json", "model.safetensors", "reward_model.json", "tokenizer.json"})
    sent.clear()
    machine(tmp_path, "b", url).put(folder)
    assert sent == ["contents.txt"], "it tells garbage collection that the version is needed"


@pytest.mark.parametrize("num_sent", range(4))
def test_a_half_upload_is_never_seen_and_is_made_whole(
    tmp_path: Path, url: str, checkpoint: MakeFolder, monkeypatch: pytest.MonkeyPatch, num_sent: int
) -> None:
    folder, put, left = checkpoint(), SharedStore._put, num_sent

    def dies(self: SharedStore, folder: Path, digest: str, name: str) -> None:
        nonlocal left
        if left == 0:
            raise CatalogUnavailable("the network is gone")
        left -= 1
        put(self, folder, digest, name)

    artifacts = machine(tmp_path, "a", url)
    with monkeypatch.context() as patch:
        patch.setattr(SharedStore, "_put", dies)
        with pytest.raises(CatalogUnavailable, match="the network is gone"):
            artifacts.put(folder)
    (digest,) = artifacts.digests()
    other = machine(tmp_path, "b", url)
    with pytest.raises(ArtifactUnreadable, match=r"has no files of the digest .* Register the version's folder again"):
        other.path(digest)
    assert leftovers(other) == []
    assert artifacts.put(folder) == digest
    other.verify(digest)


def test_an_upload_that_stopped_within_the_contents_is_made_whole(
    tmp_path: Path, folder_url: str, shared: Path, rules_folder: MakeFolder
) -> None:
    artifacts = machine(tmp_path, "a", folder_url)
    digest = artifacts.put(rules_folder())
    contents = shared / digest / "contents.txt"
    contents.write_text(contents.read_text()[:-10])
    with pytest.raises(DigestMismatch, match=r"contents\.txt"):
        machine(tmp_path, "b", folder_url).path(digest)
    artifacts.put(rules_folder(name="again"))
    machine(tmp_path, "b", folder_url).verify(digest)


# --- what is refused ---


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.safetensors", b"x" * 4104, r"model\.safetensors has \d+ bytes with the SHA-256 .* were registered"),
        ("tokenizer.json", b"", r"tokenizer\.json has 0 bytes"),
        ("reward_model.json", b'{"kind": "onnx"}', r"reward_model\.json is not what the digest was computed from"),
    ],
)
def test_other_content_is_refused_and_not_cached(
    tmp_path: Path, folder_url: str, shared: Path, checkpoint: MakeFolder, name: str, content: bytes, says: str
) -> None:
    digest = machine(tmp_path, "a", folder_url).put(checkpoint())
    (shared / digest / name).write_bytes(content)
    other = machine(tmp_path, "b", folder_url)
    with pytest.raises(DigestMismatch, match=says):
        other.path(digest)
    assert other.digests() == ()
    assert leftovers(other) == []


def test_a_missing_file_is_named(tmp_path: Path, folder_url: str, shared: Path, checkpoint: MakeFolder) -> None:
    digest = machine(tmp_path, "a", folder_url).put(checkpoint())
    (shared / digest / "model.safetensors").unlink()
    with pytest.raises(ArtifactUnreadable, match=r"model\.safetensors is missing"):
        machine(tmp_path, "b", folder_url).path(digest)


class Broken:
    """A file that breaks off after the first bytes; only small ones are read whole."""

    def __init__(self, file: Any) -> None:
        self._file, self._reads = file, 0

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            return bytes(self._file.read())
        self._reads += 1
        if self._reads > 1:
            raise ConnectionResetError("Connection reset by peer")
        return bytes(self._file.read(8))

    def __enter__(self) -> Broken:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def test_an_interrupted_fetch_leaves_nothing_and_can_be_repeated(
    tmp_path: Path, url: str, checkpoint: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = machine(tmp_path, "a", url).put(checkpoint())
    other = machine(tmp_path, "b", url)
    assert other.shared is not None
    files = other.shared._files
    with monkeypatch.context() as patch:
        opened = files.open
        patch.setattr(files, "open", lambda *given, **options: Broken(opened(*given, **options)))
        with pytest.raises(CatalogUnavailable, match=r"artifact store .* cannot be used now: .*reset") as caught:
            other.path(digest)
    assert caught.value.retry_after_s
    assert other.digests() == ()
    assert leftovers(other) == []
    other.verify(digest)
    assert leftovers(other) == []


def test_a_store_that_is_away_is_said_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nonsense://\*\*\*@host/x, which cannot be used") as caught:
        SharedStore("nonsense://me:secret@host/x")
    assert "secret" not in str(caught.value)
    # A file where the folder should be: nothing can be read or written below it.
    (tmp_path / "shared").write_text("x")
    store = SharedStore(f"file://{tmp_path}/shared/below")
    with pytest.raises(CatalogUnavailable, match="cannot be used now"):
        store.contents("a" * 64)


def test_a_full_cache_refuses_the_fetch_and_nothing_else(
    tmp_path: Path, folder_url: str, rules_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = machine(tmp_path, "a", folder_url).put(rules_folder("a"))
    other = machine(tmp_path, "b", folder_url)
    kept = other.put(rules_folder("b"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(artifacts_module, "copy_from", full)
        with pytest.raises(StorageFull, match=r"no room for .*: No space left on device"):
            other.path(digest)
    assert leftovers(other) == []
    other.verify(kept)
    other.verify(digest)


def test_a_full_store_refuses_the_upload(
    tmp_path: Path, folder_url: str, rules_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts = machine(tmp_path, "a", folder_url)
    assert artifacts.shared is not None

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(artifacts.shared._files, "put_file", full)
        with pytest.raises(StorageFull, match=r"shared is full; nothing was registered"):
            artifacts.put(rules_folder())
    artifacts.put(rules_folder(name="again"))


# --- once ---


def count_reads(artifacts: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read from the store, from now on."""
    assert artifacts.shared is not None
    read: list[str] = []
    blocks = SharedStore.blocks

    def noted(self: SharedStore, digest: str, path: object) -> Iterator[bytes]:
        read.append(str(path))
        return blocks(self, digest, str(path))

    monkeypatch.setattr(SharedStore, "blocks", noted)
    return read


def test_threads_fetch_a_version_once(
    tmp_path: Path, url: str, checkpoint: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = machine(tmp_path, "a", url).put(checkpoint(num_weights=100_000))
    other = machine(tmp_path, "b", url)
    read = count_reads(other, monkeypatch)
    start, paths = threading.Barrier(8), []

    def fetch() -> None:
        start.wait(10)
        paths.append(other.path(digest))

    threads = [threading.Thread(target=fetch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert paths == [tmp_path / "b" / digest] * 8
    assert sorted(read) == sorted(set(read))
    assert leftovers(other) == []


FETCH = """
import pathlib, sys
from rm_server.registry.artifacts import ArtifactStore
from rm_server.registry.shared_store import SharedStore
blocks, read = SharedStore.blocks, []
SharedStore.blocks = lambda self, digest, path: (read.append(path), blocks(self, digest, path))[1]
artifacts = ArtifactStore(pathlib.Path(sys.argv[1]), SharedStore(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
artifacts.path(sys.argv[3])
artifacts.verify(sys.argv[3])
print(len(read))
"""


def test_processes_fetch_a_version_once(tmp_path: Path, folder_url: str, checkpoint: MakeFolder) -> None:
    digest = machine(tmp_path, "a", folder_url).put(checkpoint(num_weights=1_000_000))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FETCH, tmp_path / "b", folder_url, digest],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    outputs = [process.communicate("go\n", timeout=60)[0] for process in processes]
    assert sorted(outputs) == ["0\n", "0\n", "4\n"]


# --- a home on a shared store ---


def test_homes_share_a_store(tmp_path: Path, url: str, rules_folder: MakeFolder) -> None:
    database = f"sqlite:///{tmp_path}/shared.db"
    first = open_home(Home(tmp_path / "a", database, url))
    second = open_home(Home(tmp_path / "b", database, url))
    record, _ = add_version(*first, "m", rules_folder(), actor="ann")
    assert missing_artifacts(*second) == ()
    assert second[1].path(record.digest) == tmp_path / "b" / "artifacts" / record.digest
    assert first[1].shared is not None
    first[1].shared.delete(record.digest)
    assert missing_artifacts(*second) == (record,)


def test_a_version_has_the_same_golden_examples_on_every_machine(
    tmp_path: Path, url: str, rules_folder: MakeFolder
) -> None:
    database, folder = f"sqlite:///{tmp_path}/shared.db", rules_folder()
    homes = [open_home(Home(tmp_path / name, database, url)) for name in "abc"]
    scores = dict(zip("mn", (1.0, 6.0), strict=True))
    for (model, score), home in zip(scores.items(), homes, strict=False):
        manifest = Manifest(kind="rules", transform="rule", golden=(GoldenExample("p", "c", score),))
        add_version(*home, model, folder, actor="ann", manifest=manifest)
    for catalog, artifacts in homes:
        for model, score in scores.items():
            record = catalog.snapshot().versions[model, 1]
            artifacts.verify(record.digest)
            (example,) = read_manifest(artifacts.path(record.digest), record.golden_json).golden
            assert example.score == score
        assert leftovers(artifacts) == []


def test_artifacts_may_be_a_folder_elsewhere(tmp_path: Path, rules_folder: MakeFolder) -> None:
    catalog, artifacts = open_home(Home(tmp_path / "home", artifacts=str(tmp_path / "elsewhere")))
    record, _ = add_version(catalog, artifacts, "m", rules_folder(), actor="ann")
    assert (tmp_path / "elsewhere" / record.digest).is_dir()
    assert not (tmp_path / "home" / "artifacts").exists()
