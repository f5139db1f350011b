"""Artifacts are there as a whole or not at all, and damage is found and named."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rm_server.errors import ArtifactUnreadable, DigestMismatch, InvalidRequest, RmError, StorageFull
from rm_server.registry import copying
from rm_server.registry.artifacts import ArtifactStore
from rm_server.registry.digest import digest_of
from rm_server.registry.manifest import Manifest, read_manifest

from .conftest import MakeFolder


def visible(store: ArtifactStore) -> set[str]:
    return {path.name for path in store.root.iterdir()} - {".incoming", ".lock"}


def leftovers(store: ArtifactStore) -> list[Path]:
    return list((store.root / ".incoming").iterdir())


def writable(path: Path) -> Path:
    path.chmod(0o644)
    return path


def test_put_copies_what_matters_under_its_digest(artifacts: ArtifactStore, checkpoint: MakeFolder) -> None:
    folder = checkpoint()
    (folder / "README.md").write_text("not copied")
    digest = artifacts.put(folder)
    assert digest == digest_of(folder, read_manifest(folder))
    assert {path.name for path in artifacts.path(digest).iterdir()} == {
        "config.json",
        "contents.txt",
        "model.safetensors",
        "reward_model.json",
        "tokenizer.json",
    }
    assert (artifacts.path(digest) / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert visible(artifacts) == {digest}
    assert artifacts.digests() == (digest,)
    artifacts.verify(digest)


def test_the_stored_contents_are_what_sha256sum_takes_for_the_digest(
    artifacts: ArtifactStore, checkpoint: MakeFolder
) -> None:
    digest = artifacts.put(checkpoint())
    command = ["sha256sum", artifacts.path(digest) / "contents.txt"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0] == digest


def test_the_same_content_is_stored_once(artifacts: ArtifactStore, checkpoint: MakeFolder) -> None:
    assert artifacts.put(checkpoint("a")) == artifacts.put(checkpoint("b"))
    assert len(visible(artifacts)) == 1
    assert leftovers(artifacts) == []


def test_a_manifest_may_stand_in_for_the_folder_s_own(artifacts: ArtifactStore, checkpoint: MakeFolder) -> None:
    folder = checkpoint()
    (folder / "reward_model.json").unlink()
    with pytest.raises(ArtifactUnreadable, match=r"no reward_model\.json"):
        artifacts.put(folder)
    manifest = Manifest(kind="sequence_classification", append_eos=True, max_tokens=7)
    digest = artifacts.put(folder, manifest)
    assert read_manifest(artifacts.path(digest)) == manifest
    assert not (folder / "reward_model.json").exists()


def test_stored_files_are_read_only(artifacts: ArtifactStore, checkpoint: MakeFolder) -> None:
    folder = artifacts.path(artifacts.put(checkpoint()))
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o444}


def test_a_linked_file_is_copied_as_a_file(artifacts: ArtifactStore, checkpoint: MakeFolder) -> None:
    folder = checkpoint()
    (folder / "blobs").mkdir()
    (folder / "model.safetensors").rename(folder / "blobs" / "abc")
    (folder / "model.safetensors").symlink_to("blobs/abc")
    assert not (artifacts.path(artifacts.put(folder)) / "model.safetensors").is_symlink()


def test_truncated_weights_never_get_in(artifacts: ArtifactStore, checkpoint: MakeFolder) -> None:
    folder = checkpoint()
    os.truncate(folder / "model.safetensors", 2000)
    with pytest.raises(ArtifactUnreadable, match=r"checkpoint/model\.safetensors is not a whole safetensors file"):
        artifacts.put(folder)
    assert visible(artifacts) == set()
    assert leftovers(artifacts) == []


def test_what_is_not_there_is_said(artifacts: ArtifactStore) -> None:
    with pytest.raises(ArtifactUnreadable, match=r"is missing\. Register the version's folder again"):
        artifacts.path("a" * 64)
    with pytest.raises(InvalidRequest, match="no digest"):
        artifacts.path("../../etc")
    assert not artifacts.delete("a" * 64)


# --- damage ---


def test_verify_names_a_missing_file(artifacts: ArtifactStore, checkpoint: MakeFolder) -> None:
    digest = artifacts.put(checkpoint())
    (artifacts.path(digest) / "config.json").unlink()
    with pytest.raises(ArtifactUnreadable, match=r"config\.json cannot be read"):
        artifacts.verify(digest)


def test_verify_names_a_truncated_file(artifacts: ArtifactStore, checkpoint: MakeFolder) -> None:
    digest = artifacts.put(checkpoint())
    os.truncate(writable(artifacts.path(digest) / "model.safetensors"), 100)
    with pytest.raises(ArtifactUnreadable, match=r"model\.safetensors is truncated: 100 bytes of"):
        artifacts.verify(digest)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_verify_names_the_first_file_that_differs(artifacts: ArtifactStore, checkpoint: MakeFolder, name: str) -> None:
    digest = artifacts.put(checkpoint())
    path = writable(artifacts.path(digest) / name)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DigestMismatch, match=rf"{name} has the SHA-256"):
        artifacts.verify(digest)


def test_verify_finds_another_manifest(artifacts: ArtifactStore, checkpoint: MakeFolder) -> None:
    digest = artifacts.put(checkpoint())
    path = writable(artifacts.path(digest) / "reward_model.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "append_eos": True}))
    with pytest.raises(DigestMismatch, match=r"reward_model\.json is not what the digest"):
        artifacts.verify(digest)


def test_verify_finds_a_file_that_was_added(artifacts: ArtifactStore, checkpoint: MakeFolder) -> None:
    digest = artifacts.put(checkpoint())
    (artifacts.path(digest) / "chat_template.jinja").write_text("x")
    with pytest.raises(DigestMismatch, match=r"chat_template\.jinja does not belong"):
        artifacts.verify(digest)


def test_verify_finds_other_contents(artifacts: ArtifactStore, checkpoint: MakeFolder) -> None:
    digest = artifacts.put(checkpoint())
    path = writable(artifacts.path(digest) / "contents.txt")
    path.write_text(path.read_text().replace("config.json", "config.jsom"))
    with pytest.raises(DigestMismatch, match=r"contents\.txt has the digest"):
        artifacts.verify(digest)
    path.write_text("")
    with pytest.raises(ArtifactUnreadable, match=r"contents\.txt cannot be read"):
        artifacts.verify(digest)


def test_putting_a_damaged_version_again_repairs_it(artifacts: ArtifactStore, checkpoint: MakeFolder) -> None:
    folder = checkpoint()
    digest = artifacts.put(folder)
    (artifacts.path(digest) / "config.json").unlink()
    assert artifacts.put(folder) == digest
    artifacts.verify(digest)
    assert leftovers(artifacts) == []


# --- a full disk ---


def test_what_cannot_fit_is_refused_before_it_fills_the_disk(
    artifacts: ArtifactStore, checkpoint: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with a hole, larger than the disk: not one of its bytes is copied."""
    folder = checkpoint()
    num_bytes = 15 << 40
    header = json.dumps({"w": {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        try:
            file.truncate(8 + len(header) + num_bytes)
        except OSError as error:
            pytest.skip(f"this file system has no files of 15 TiB: {error}")
    monkeypatch.setattr(copying, "read_blocks", lambda path: pytest.fail(f"{path} is copied"))
    with pytest.raises(StorageFull, match=r"GB free, and .*checkpoint needs 16492\.\d\d GB"):
        artifacts.put(folder)
    assert leftovers(artifacts) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_meanwhile_leaves_nothing(
    artifacts: ArtifactStore, checkpoint: MakeFolder, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def half(path: Path) -> Iterator[bytes]:
        yield path.read_bytes()[:10]
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(copying, "read_blocks", half)
    with pytest.raises(StorageFull, match=os.strerror(number)):
        artifacts.put(checkpoint())
    assert visible(artifacts) == set()
    assert leftovers(artifacts) == []


FILL = """
import pathlib, sys
from rm_server.errors import StorageFull
from rm_server.registry import artifacts as module
from rm_server.registry.home import add_version, open_home

home, small, large = map(pathlib.Path, sys.argv[1:])
catalog, artifacts = open_home(home)
add_version(catalog, artifacts, "m", small, actor="test")
module.shutil.disk_usage = lambda path: module.shutil._ntuple_diskusage(1 << 60, 0, 1 << 60)  # let it run into the wall
try:
    add_version(catalog, artifacts, "m", large, actor="test")
except StorageFull as error:
    print("refused:", error)
assert list((artifacts.root / ".incoming").iterdir()) == []
assert len(artifacts.digests()) == 1
catalog.set_label("m", "stable", 1, "test")
print(catalog.snapshot().labels["m", "stable"], len(catalog.snapshot().versions))
"""


def test_a_disk_that_is_really_full(checkpoint: MakeFolder, tmp_path: Path) -> None:
    small, large = checkpoint("small"), checkpoint("large", num_weights=400_000)
    mounted = tmp_path / "disk"
    mounted.mkdir()
    inside = f'mount -t tmpfs -o size=1500k tmpfs {mounted} && exec "$PYTHON" -c "$FILL" {mounted}/home {small} {large}'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", inside]
    try:
        subprocess.run([*command[:3], "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no user namespaces, so no small disk can be made: {error}")
    environment = {**os.environ, "PYTHON": sys.executable, "FILL": FILL}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    refused, answer = done.stdout.splitlines()
    assert refused.startswith("refused:")
    assert "No space left on device" in refused
    assert answer == "1 1"


# --- deletion and leftovers ---


def test_delete_removes_one_version(artifacts: ArtifactStore, rules_folder: MakeFolder) -> None:
    first, second = artifacts.put(rules_folder("a")), artifacts.put(rules_folder("b"))
    assert artifacts.delete(first)
    assert artifacts.digests() == (second,)
    assert leftovers(artifacts) == []


def test_sweep_keeps_what_is_in_use_and_what_is_no_version(artifacts: ArtifactStore, rules_folder: MakeFolder) -> None:
    first, second = artifacts.put(rules_folder("a")), artifacts.put(rules_folder("b"))
    (artifacts.root / "lost+found").mkdir()
    assert artifacts.sweep(lambda: {second}) == (first,)
    assert visible(artifacts) == {second, "lost+found"}


def test_leftovers_of_a_killed_process_are_cleaned(artifacts: ArtifactStore) -> None:
    half = artifacts.root / ".incoming" / "half"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"x")
    assert ArtifactStore(artifacts.root).clean_temporary() == 1
    assert leftovers(artifacts) == []


def test_scratch_space_is_left_alone_and_then_gone(artifacts: ArtifactStore) -> None:
    with artifacts.scratch() as folder:
        (folder / "fetched").write_text("x")
        assert artifacts.clean_temporary() == 0
        assert (folder / "fetched").exists()
    assert leftovers(artifacts) == []


def test_a_copy_under_way_is_left_alone(artifacts: ArtifactStore) -> None:
    (artifacts.root / ".incoming" / "half").mkdir()
    with artifacts.hold():
        assert ArtifactStore(artifacts.root).clean_temporary() == 0
        assert len(leftovers(artifacts)) == 1
    assert artifacts.clean_temporary() == 1


def test_sweep_waits_for_a_registration_under_way(artifacts: ArtifactStore, rules_folder: MakeFolder) -> None:
    """Between `put` and the catalog a version is named by nobody; it must not vanish there."""
    named: set[str] = set()
    swept: list[tuple[str, ...]] = []
    asked = threading.Event()

    def sweep() -> None:
        asked.set()
        swept.append(artifacts.sweep(lambda: named))

    with artifacts.hold():
        digest = artifacts.put(rules_folder())
        thread = threading.Thread(target=sweep)
        thread.start()
        assert asked.wait(10)
        named.add(digest)
    thread.join(10)
    assert swept == [()]
    artifacts.verify(digest)


def test_threads_that_put_the_same_content_agree(artifacts: ArtifactStore, checkpoint: MakeFolder) -> None:
    folder, answers, errors = checkpoint(num_weights=100_000), [], []

    def put() -> None:
        try:
            answers.append(artifacts.put(folder))
        except RmError as error:
            errors.append(error)

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    assert len(answers) == 8
    assert set(answers) == set(artifacts.digests())
    artifacts.verify(answers[0])
    assert leftovers(artifacts) == []
