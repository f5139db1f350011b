"""An adapter whose base is on the hub, which is played by a folder: named by `--base`, or by the adapter's config."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import tiny_models
from tiny_adapters import make_adapter, peft_scores

from rm_server.errors import ArtifactUnreadable
from rm_server.registry.home import open_home
from rm_server.registry.lora import read_base_name
from rm_server.registry.manifest import read_manifest, write_manifest
from rm_server.training.adapter_base import named_base
from rm_server.training.offline_scoring import offline_scorer
from rm_server.training.registration import register_folder

NAME = "hf://org/base@v1.0"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_models.make_checkpoint(tmp_path / "0123abc", "llama")


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    return make_adapter(tmp_path / "adapter", base, copies_base=False)


@pytest.fixture
def hub(base: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """What was asked of the hub, which has one repository."""
    asked: list[tuple[str, str | None]] = []

    def snapshot_download(repo: str, *, revision: str | None, **_: Any) -> str:
        asked.append((repo, revision))
        return str(base)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def say_base(adapter: Path, name: object) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": name}))


@pytest.mark.parametrize("is_in_config", [True, False], ids=["its config names it", "--base names it"])
def test_a_base_on_the_hub_becomes_a_version(
    tmp_path: Path, base: Path, adapter: Path, hub: list[tuple[str, str | None]], is_in_config: bool
) -> None:
    expected = peft_scores(adapter, base, [[40, 41, 42]])
    if is_in_config:
        say_base(adapter, NAME)
    before = sorted(path.name for path in adapter.iterdir())
    home = tmp_path / "home"
    registered = register_folder(home, "m", str(adapter), actor="ann", base=None if is_in_config else NAME)
    assert hub == [("org/base", "v1.0")]
    catalog, artifacts = open_home(home)
    folder = artifacts.path(registered.record.digest)
    found = read_base_name(folder)
    assert found.version == "m-base@1"
    assert catalog.snapshot().versions["m-base", 1].digest == found.digest
    catalog.close()
    (scored,) = offline_scorer(folder, registered.manifest)([((), (40, 41, 42))])
    assert scored.score == pytest.approx(expected[0], abs=1e-5)
    assert sorted(path.name for path in adapter.iterdir()) == before
    assert list((home / "artifacts" / ".incoming").iterdir()) == []


def test_a_base_has_golden_examples_of_its_own(tmp_path: Path, base: Path) -> None:
    home, folder = tmp_path / "home", make_adapter(tmp_path / "adapter", base)
    known = register_folder(home, "known", str(base), actor="ann").manifest
    fewer = replace(known, golden=known.golden[:2])
    catalog, artifacts = open_home(home)
    for right in (fewer, replace(known, golden=known.golden[:3])):
        write_manifest(folder / "base", right)
        register_folder(home, "m", str(folder), actor="ann")
        record = catalog.snapshot().versions["m-base", 1]
        assert read_manifest(artifacts.path(record.digest), record.golden_json) == right
    catalog.close()


def test_a_base_that_cannot_be_had_is_said(tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    say_base(adapter, NAME)
    wrong = r"org/base at v1\.0 cannot be had from the Hugging Face hub: .*fetch it elsewhere \(`hf download`\)"
    with pytest.raises(ArtifactUnreadable, match=f"(?s){wrong}"):
        register_folder(tmp_path / "home", "m", str(adapter), actor="ann")
    catalog, artifacts = open_home(tmp_path / "home")
    assert (catalog.revision(), artifacts.digests()) == (0, ())
    catalog.close()


@pytest.mark.parametrize("name", ["org/base", "/data/base", "", None, 7])
def test_other_names_are_told_and_not_followed(tmp_path: Path, adapter: Path, name: object) -> None:
    say_base(adapter, name)
    assert named_base(adapter) is None
    with pytest.raises(ArtifactUnreadable, match=rf"base_model_name_or_path {name!r}\. Name it with `rm-server regist"):
        register_folder(tmp_path / "home", "m", str(adapter), actor="ann")


def test_a_base_that_is_there_goes_before_a_name(adapter: Path, base: Path) -> None:
    say_base(adapter, NAME)
    assert named_base(adapter) == NAME
    (adapter / "base").symlink_to(base)
    assert named_base(adapter) is None
    assert named_base(base) is None
