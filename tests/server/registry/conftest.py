"""Folders of versions small enough to read: rules, and checkpoints whose weights are a handful of numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from postgresql import postgresql, postgresql_url  # noqa: F401, fixtures
from safetensors.numpy import save_file

from rm_server.registry.artifacts import ArtifactStore
from rm_server.registry.catalog import Catalog
from rm_server.registry.home import open_home
from rm_server.registry.manifest import Manifest, write_manifest

MakeFolder = Callable[..., Path]


@pytest.fixture
def rules_folder(tmp_path: Path) -> MakeFolder:
    """Makes a folder with a rules version; another ``text`` is another version."""

    def make(text: str = "even", name: str | None = None) -> Path:
        folder = tmp_path / (name or f"rules-{text}")
        folder.mkdir()
        (folder / "rules.json").write_text(json.dumps({"text": text}))
        write_manifest(folder, Manifest(kind="rules", transform="rule"))
        return folder

    return make


@pytest.fixture
def checkpoint(tmp_path: Path) -> MakeFolder:
    """Makes a folder in the layout of a sequence classifier, with its manifest."""

    def make(name: str = "checkpoint", num_weights: int = 1000) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "tiny"}')
        (folder / "tokenizer.json").write_text("{}")
        save_file({"score.weight": np.arange(num_weights, dtype=np.float32)}, folder / "model.safetensors")
        write_manifest(folder, Manifest(kind="sequence_classification", max_tokens=128))
        return folder

    return make


@pytest.fixture
def home(tmp_path: Path) -> Iterator[tuple[Catalog, ArtifactStore]]:
    """An open, empty home."""
    catalog, artifacts = open_home(tmp_path / "home")
    yield catalog, artifacts
    catalog.close()


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """m@1, m@2 and other@1."""
    catalog = Catalog(f"sqlite:///{tmp_path}/catalog.db")
    for model, digit in (("m", "a"), ("m", "b"), ("other", "a")):
        catalog.register(model, digit * 64, "rules", 0, "ann")
    return catalog


@pytest.fixture
def artifacts(home: tuple[Catalog, ArtifactStore]) -> ArtifactStore:
    """The store of an empty home."""
    return home[1]
