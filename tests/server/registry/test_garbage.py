"""What no version names goes, here and in the shared store; what is young, named or of another kind stays."""

from __future__ import annotations

import os
import time
from datetime import datetime
from pathlib import Path

import pytest

from rm_server.errors import InvalidRequest
from rm_server.registry.artifacts import ArtifactStore
from rm_server.registry.catalog import Catalog
from rm_server.registry.garbage import MIN_AGE_S, collect_garbage
from rm_server.registry.home import Home, add_version, open_home
from rm_server.registry.shared_store import SharedStore

from .conftest import MakeFolder


@pytest.fixture
def home(tmp_path: Path, rules_folder: MakeFolder) -> tuple[Catalog, ArtifactStore, SharedStore]:
    """With one version, on a shared store."""
    catalog, artifacts = open_home(Home(tmp_path / "home", artifacts=f"file://{tmp_path}/shared"))
    add_version(catalog, artifacts, "m", rules_folder("kept"), actor="ann")
    assert artifacts.shared is not None
    return catalog, artifacts, artifacts.shared


def grow_old(tmp_path: Path, digest: str) -> None:
    """As if the version had come an hour ago."""
    for root in (tmp_path / "home" / "artifacts", tmp_path / "shared"):
        for path in (root / digest).rglob("*"):
            os.utime(path, (time.time() - MIN_AGE_S - 1,) * 2)


def test_what_is_old_and_unnamed_goes(
    home: tuple[Catalog, ArtifactStore, SharedStore], tmp_path: Path, rules_folder: MakeFolder
) -> None:
    catalog, artifacts, shared = home
    kept, lost, young = *artifacts.digests(), artifacts.put(rules_folder("lost")), artifacts.put(rules_folder("young"))
    num_bytes = artifacts.size(lost)
    for digest in (kept, lost):
        grow_old(tmp_path, digest)
    for removes in (False, True):
        garbage = collect_garbage(catalog, artifacts, removes=removes)
        assert [(item.digest, item.place, item.num_bytes) for item in garbage] == [
            (lost, str(artifacts.root), num_bytes),
            (lost, str(shared), num_bytes),
        ]
        is_there = lost in artifacts.digests() and lost in shared.digests()
        assert is_there is not removes
    assert set(artifacts.digests()) == set(shared.digests()) == {kept, young}
    assert collect_garbage(catalog, artifacts) == ()
    artifacts.verify(kept)


def test_a_half_upload_counts_by_its_newest_file(
    home: tuple[Catalog, ArtifactStore, SharedStore], tmp_path: Path
) -> None:
    catalog, artifacts, _ = home
    digest = "a" * 64
    half = tmp_path / "shared" / digest
    half.mkdir()
    (half / "config.json").write_text("{}")
    grow_old(tmp_path, digest)
    (half / "model.safetensors").write_bytes(b"on its way")
    assert collect_garbage(catalog, artifacts) == ()
    grow_old(tmp_path, digest)
    assert [item.digest for item in collect_garbage(catalog, artifacts)] == [digest]
    assert not half.exists()


def test_who_registers_it_again_meanwhile_keeps_it(
    home: tuple[Catalog, ArtifactStore, SharedStore], tmp_path: Path, rules_folder: MakeFolder
) -> None:
    catalog, artifacts, shared = home
    folder = rules_folder("again")
    digest = artifacts.put(folder)
    grow_old(tmp_path, digest)
    ArtifactStore(tmp_path / "another machine", shared).put(folder)
    collect_garbage(catalog, artifacts)
    assert digest in shared.digests()
    assert digest not in artifacts.digests()


def test_of_two_that_collect_at_once_each_goes_on_after_what_the_other_removed(
    home: tuple[Catalog, ArtifactStore, SharedStore],
    tmp_path: Path,
    rules_folder: MakeFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    catalog, artifacts, shared = home
    theirs, ours = sorted(artifacts.put(rules_folder(text)) for text in ("lost", "forgotten"))
    for digest in (theirs, ours):
        grow_old(tmp_path, digest)
    age_of = shared.last_change

    def asked(digest: str) -> datetime:
        age = age_of(digest)
        if digest == theirs:
            SharedStore(str(shared)).delete(digest)
        return age

    monkeypatch.setattr(shared, "last_change", asked)
    garbage = collect_garbage(catalog, artifacts)
    assert [item.digest for item in garbage if item.place == str(shared)] == [ours]
    assert not {theirs, ours} & set(shared.digests())


def test_the_wrong_catalog_collects_nothing(home: tuple[Catalog, ArtifactStore, SharedStore], tmp_path: Path) -> None:
    _, artifacts, shared = home
    with pytest.raises(InvalidRequest, match="has never had a version"):
        collect_garbage(Catalog(f"sqlite:///{tmp_path}/wrong.db"), artifacts, min_age_s=0)
    assert len(artifacts.digests()) == len(shared.digests()) == 1


def test_what_is_no_version_stays(home: tuple[Catalog, ArtifactStore, SharedStore], tmp_path: Path) -> None:
    catalog, artifacts, _ = home
    (tmp_path / "shared" / "README").write_text("ours")
    (tmp_path / "shared" / "others").mkdir()
    assert collect_garbage(catalog, artifacts, min_age_s=0) == ()
    assert (tmp_path / "shared" / "README").exists()
    assert (tmp_path / "shared" / "others").exists()
