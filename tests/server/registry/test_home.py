"""A home: where things lie, and the changes that concern catalog and artifacts together."""

from __future__ import annotations

import errno
import fcntl
import getpass
import os
from pathlib import Path

import pytest

from rm_server import cli
from rm_server.errors import ArtifactUnreadable, CatalogUnavailable, InvalidRequest
from rm_server.registry.artifacts import ArtifactStore
from rm_server.registry.backup import back_up
from rm_server.registry.catalog import Catalog
from rm_server.registry.home import (
    Home,
    add_version,
    make_home,
    missing_artifacts,
    open_home,
    operating_system_user,
    sweep_artifacts,
)
from rm_server.registry.manifest import GoldenExample, Manifest, read_manifest

from .conftest import MakeFolder

HomeParts = tuple[Catalog, ArtifactStore]


def test_a_home_is_made_where_there_is_none(tmp_path: Path) -> None:
    catalog, artifacts = open_home(tmp_path / "deep" / "a b ü%20")
    assert catalog.revision() == 0
    assert artifacts.digests() == ()
    assert (tmp_path / "deep" / "a b ü%20" / "catalog.db").is_file()


def test_a_server_makes_its_home_and_says_whether_it_is_new(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    assert make_home(home)
    assert make_home(home)  # a folder, and still nothing in it
    catalog, _ = open_home(home)
    catalog.close()
    assert not make_home(home)
    assert not make_home(Home(tmp_path / "cache", catalog="postgresql+psycopg://rm@database/rm"))
    assert (tmp_path / "cache").is_dir()


def test_a_server_makes_no_home_in_a_folder_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CatalogUnavailable, match=r"modles/home cannot be used .* Is it spelt right\? If so: mkdir -p"):
        make_home(Home(Path("modles/home")))
    assert not Path("modles").exists()
    assert make_home(Home(Path("home")))


def test_a_home_is_found_again(tmp_path: Path, rules_folder: MakeFolder) -> None:
    catalog, artifacts = open_home(tmp_path / "home")
    record, _ = add_version(catalog, artifacts, "m", rules_folder(), actor="ann")
    catalog.close()
    catalog, artifacts = open_home(tmp_path / "home")
    assert catalog.snapshot().versions["m", 1] == record
    artifacts.verify(record.digest)


def test_opening_cleans_up_after_the_killed(tmp_path: Path) -> None:
    half = tmp_path / "artifacts" / ".incoming" / "half"
    half.mkdir(parents=True)
    open_home(tmp_path)
    assert not half.exists()


def test_a_relative_home_is_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    catalog, _ = open_home(Path("home"))
    monkeypatch.chdir("/")
    assert catalog.revision() == 0
    assert Home(tmp_path / "home").catalog_url == f"sqlite:///{tmp_path}/home/catalog.db"


def test_a_home_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CatalogUnavailable, match="cannot be used as a home"):
        open_home(tmp_path / "file")


def lose(file: Path, how: str) -> None:
    for path in file.parent.glob("catalog.db*"):
        path.unlink()
    if how == "emptied":
        file.touch()


def test_a_home_on_a_file_system_without_locks_is_said(
    home: HomeParts, tmp_path: Path, rules_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    says = r"cannot be locked \(No locks available\), as a home's files must be: put the home on another file system"
    with pytest.raises(CatalogUnavailable, match=f"catalog.db.lock {says}"):
        open_home(tmp_path / "home")
    # Where the catalog is elsewhere, it is the artifacts.
    with pytest.raises(CatalogUnavailable, match=f"artifacts/.lock {says}"):
        add_version(*home, "m", rules_folder(), actor="ann")


@pytest.mark.parametrize("how", ["removed", "emptied"])
def test_a_home_that_lost_its_catalog_is_not_taken_for_a_new_one(
    tmp_path: Path, rules_folder: MakeFolder, how: str
) -> None:
    home = Home(tmp_path / "home")
    catalog, artifacts = open_home(home)
    digest = artifacts.put(rules_folder("put"))  # and then killed
    catalog.close()
    catalog, artifacts = open_home(home)
    add_version(catalog, artifacts, "m", rules_folder(), actor="ann")
    back_up(catalog, tmp_path / "backup.json")
    catalog.close()

    lose(home.path / "catalog.db", how)
    with pytest.raises(CatalogUnavailable, match=r"beside it are 2 versions' artifacts: .* rm-server restore FILE"):
        open_home(home)
    assert digest in artifacts.digests()
    open_home(Home(home.path, catalog=f"sqlite:///{tmp_path}/elsewhere.db"))[0].close()
    assert cli.main(["restore", str(tmp_path / "backup.json"), "--home", str(home.path)]) == 0
    catalog, _ = open_home(home)
    assert catalog.snapshot().versions_of("m") == (1,)


def test_catalogs_may_lie_elsewhere(tmp_path: Path) -> None:
    open_home(Home(tmp_path / "home", f"sqlite:///{tmp_path}/shared.db"))
    assert (tmp_path / "shared.db").is_file()
    assert not (tmp_path / "home" / "catalog.db").exists()


def test_add_version_copies_and_registers(home: HomeParts, rules_folder: MakeFolder) -> None:
    folder = rules_folder()
    record, created = add_version(*home, "m", folder, actor="ann", comment="why")
    assert created
    assert (record.version, record.kind, record.created_by, record.comment) == (1, "rules", "ann", "why")
    home[1].verify(record.digest)
    assert add_version(*home, "m", folder, actor="ann") == (record, False)
    assert add_version(*home, "n", folder, actor="ann")[0].digest == record.digest


def test_a_manifest_may_be_handed_in(home: HomeParts, rules_folder: MakeFolder) -> None:
    record, _ = add_version(*home, "m", rules_folder(), actor="ann", manifest=Manifest(kind="rules", max_tokens=9))
    assert record.max_tokens == 9


def golden(*scores: float, tolerance: float = 1e-3) -> Manifest:
    examples = tuple(GoldenExample("p", f"c{place}", score) for place, score in enumerate(scores))
    return Manifest(kind="rules", transform="rule", golden=examples, tolerance={"fp32": tolerance})


def asked(home: HomeParts, model: str, version: int = 1) -> Manifest:
    """What a load reads."""
    record = home[0].snapshot().versions[model, version]
    return read_manifest(home[1].path(record.digest), record.golden_json)


def test_each_version_has_golden_examples_of_its_own(home: HomeParts, rules_folder: MakeFolder) -> None:
    folder = rules_folder()
    for model, manifest in {
        "a": golden(1.0),
        "b": golden(1.0, tolerance=1e9),
        "c": golden(6.0),
        "d": golden(1.0),
    }.items():
        add_version(*home, model, folder, actor="ann", manifest=manifest)
    assert asked(home, "a") == golden(1.0)
    assert asked(home, "b") == golden(1.0, tolerance=1e9)
    assert asked(home, "c") == golden(6.0)
    assert asked(home, "d") == golden(1.0)
    assert len(home[1].digests()) == 1


def test_golden_examples_are_put_right_by_registering_again(home: HomeParts, rules_folder: MakeFolder) -> None:
    folder = rules_folder()
    wrong, right = golden(6.0), golden(1.0, 2.0)
    first, _ = add_version(*home, "m", folder, actor="ann", manifest=wrong)
    for manifest in (right, wrong, right):
        record, created = add_version(*home, "m", folder, actor="bob", comment="measured anew", manifest=manifest)
        assert (record.key, created) == (first.key, False)
        assert home[0].snapshot().versions[record.key] == record
        assert asked(home, "m") == manifest
    newest = home[0].history("m", 1)[0]
    assert (newest.action, newest.actor, newest.comment) == ("set_golden", "bob", "measured anew")
    assert newest.detail == "2 golden examples"
    revision = home[0].revision()
    add_version(*home, "m", folder, actor="bob", manifest=right)
    assert home[0].revision() == revision


def test_who_brings_no_golden_examples_leaves_those_there_are(home: HomeParts, rules_folder: MakeFolder) -> None:
    folder = rules_folder()
    add_version(*home, "m", folder, actor="ann", manifest=golden(6.0))
    add_version(*home, "m", folder, actor="ann", manifest=golden(1.0))
    for model in "mn":
        add_version(*home, model, folder, actor="ann", manifest=golden())
    assert asked(home, "m") == golden(1.0)
    assert asked(home, "n") == golden(6.0)


def test_what_is_refused_is_not_registered(home: HomeParts, rules_folder: MakeFolder) -> None:
    folder = rules_folder()
    with pytest.raises(InvalidRequest):
        add_version(*home, "m@1", folder, actor="ann")
    (folder / "rules.json").unlink()
    with pytest.raises(ArtifactUnreadable):
        add_version(*home, "m", folder, actor="ann")
    assert home[0].revision() == 0


def test_what_has_no_end_is_not_read(home: HomeParts, rules_folder: MakeFolder) -> None:
    """A pipe under the name of a file that is read would keep one of the server's threads for ever."""
    pipe = rules_folder("a")
    os.mkfifo(pipe / "pipe")
    device = rules_folder("b")
    (device / "reward_model.json").unlink()
    (device / "reward_model.json").symlink_to("/dev/null")
    base = rules_folder("c")
    (base / "base").mkdir()
    os.mkfifo(base / "base" / "reward_model.json")
    for folder in (pipe, device, base):
        with pytest.raises(ArtifactUnreadable, match="pipe, socket or device"):
            add_version(*home, "m", folder, actor="ann")


def test_sweeping_keeps_what_any_model_names(home: HomeParts, rules_folder: MakeFolder) -> None:
    catalog, artifacts = home
    shared, lonely = rules_folder("shared"), rules_folder("lonely")
    for model in ("m", "n"):
        add_version(*home, model, shared, actor="ann")
    gone, _ = add_version(*home, "m", lonely, actor="ann")
    catalog.delete_version("m", 1, "ann")
    assert sweep_artifacts(*home) == ()
    catalog.delete_version("m", 2, "ann")
    assert sweep_artifacts(*home) == (gone.digest,)
    assert len(artifacts.digests()) == 1


def test_versions_without_files_are_listed(home: HomeParts, rules_folder: MakeFolder) -> None:
    kept, _ = add_version(*home, "m", rules_folder("a"), actor="ann")
    lost, _ = add_version(*home, "m", rules_folder("b"), actor="ann")
    home[1].delete(lost.digest)
    assert missing_artifacts(*home) == (lost,)
    assert kept not in missing_artifacts(*home)


def test_somebody_acts_even_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert operating_system_user() == getpass.getuser()

    def nobody() -> str:
        raise KeyError("uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert operating_system_user().startswith("uid ")
