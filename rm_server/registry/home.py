"""A home: the folder with catalog and artifacts, and the changes that concern both."""

from __future__ import annotations

import getpass
import os
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL

from rm_server.errors import CatalogUnavailable
from rm_server.registry.artifacts import ArtifactStore
from rm_server.registry.catalog import Catalog
from rm_server.registry.manifest import Manifest, read_manifest
from rm_server.registry.records import VersionRecord


@dataclass(frozen=True, slots=True)
class Home:
    """The layout of ``--home DIR``."""

    path: Path

    @property
    def catalog_url(self) -> str:
        """The database, where none is named elsewhere."""
        url = URL.create("sqlite", database=str(self.path.absolute() / "catalog.db"))
        return url.render_as_string()

    @property
    def artifacts(self) -> Path:
        """The versions' files."""
        return self.path / "artifacts"


def open_home(path: Path, catalog_url: str | None = None) -> tuple[Catalog, ArtifactStore]:
    """Opens a home, which is made where there is none, and removes what killed processes left half done.

    ``catalog_url``: a database that several servers share, in place of the home's own.
    Raises CatalogUnavailable when the folder or the database cannot be used.
    """
    home = Home(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        artifacts = ArtifactStore(home.artifacts)
    except OSError as error:
        raise CatalogUnavailable(f"{path} cannot be used as a home: {error}") from error
    catalog = Catalog(catalog_url or home.catalog_url)
    artifacts.clean_temporary()
    return catalog, artifacts


def add_version(
    catalog: Catalog,
    artifacts: ArtifactStore,
    model: str,
    folder: Path,
    *,
    actor: str,
    comment: str = "",
    manifest: Manifest | None = None,
) -> tuple[VersionRecord, bool]:
    """Copies a folder in and registers it: (record, True), or (record, False) when the model has that content already.

    ``manifest`` stands in for the folder's own ``reward_model.json``. Raises what `ArtifactStore.put` and
    `Catalog.register` raise. Killed in between, it leaves files that no version names, for `sweep_artifacts`.
    """
    manifest = manifest or read_manifest(folder)
    with artifacts.hold():
        digest = artifacts.put(folder, manifest)
        return catalog.register(model, digest, manifest.kind, manifest.max_tokens, actor, comment)


def sweep_artifacts(catalog: Catalog, artifacts: ArtifactStore) -> tuple[str, ...]:
    """Removes the files that no version names, and returns their digests."""
    return artifacts.sweep(lambda: {record.digest for record in catalog.snapshot().versions.values()})


def missing_artifacts(catalog: Catalog, artifacts: ArtifactStore) -> tuple[VersionRecord, ...]:
    """The versions whose files are not there, after a restore for example."""
    there = set(artifacts.digests())
    return tuple(record for record in catalog.snapshot().versions.values() if record.digest not in there)


def operating_system_user() -> str:
    """Who acts when nobody is named."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"
