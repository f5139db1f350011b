"""A home: the folder with catalog and artifacts, and the changes that concern both."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import URL

from rm_server.errors import CatalogUnavailable
from rm_server.registry.artifacts import ArtifactStore
from rm_server.registry.catalog import Catalog
from rm_server.registry.composite import parts_of, pinned_folder
from rm_server.registry.layout import check_entries
from rm_server.registry.lora import add_base, base_of, pinned_adapter
from rm_server.registry.manifest import Manifest, read_manifest
from rm_server.registry.records import Snapshot, VersionKey, VersionRecord
from rm_server.registry.shared_store import SharedStore
from rm_server.registry.versions_by_name import CheckModel, any_model

CATALOG_FILE = "catalog.db"
"""In the home that has a catalog of its own."""


@dataclass(frozen=True, slots=True)
class Home:
    """Where a server, or a command, has its catalog and its artifacts.

    ``path``: the folder of ``--home DIR``. ``catalog``: the URL (of SQLAlchemy) of a database that several servers
    share; empty: a file of the home's own. ``artifacts``: a folder, or a URL (of fsspec) that several servers share,
    for which the home's folder is the cache; empty: the home's folder alone.
    """

    path: Path
    catalog: str = field(default="", repr=False)
    artifacts: str = ""

    @property
    def catalog_url(self) -> str:
        """The database. May contain a password."""
        if self.catalog:
            return self.catalog
        url = URL.create("sqlite", database=str(self.path.absolute() / CATALOG_FILE))
        return url.render_as_string()

    @property
    def artifacts_folder(self) -> Path:
        """The versions' files on this machine."""
        is_folder = self.artifacts and "://" not in self.artifacts
        return Path(self.artifacts).expanduser() if is_folder else self.path / "artifacts"

    @property
    def shared_artifacts(self) -> SharedStore | None:
        """The versions' files for all machines. Raises ConfigError when there is no such kind of store."""
        return SharedStore(self.artifacts) if "://" in self.artifacts else None


def make_home(home: Home) -> bool:
    """A server's home, made where there is none; whether its catalog will be a new one, with nothing in it.

    Raises CatalogUnavailable where the folder that it would be in is missing, too: a slip, more often than a plan.
    """
    above = home.path.absolute().parent
    if not above.is_dir():
        raise CatalogUnavailable(
            f"{home.path} cannot be used as a home: {above} is no folder either. Is it spelt right? If so: "
            f"mkdir -p {above}"
        )
    try:
        home.path.mkdir(exist_ok=True)
    except OSError as error:
        raise CatalogUnavailable(f"{home.path} cannot be used as a home: {error}") from error
    return not home.catalog and not (home.path / CATALOG_FILE).exists()


def open_home(home: Home | Path, *, may_be_lost: bool = False) -> tuple[Catalog, ArtifactStore]:
    """Opens a home, which is made where there is none, and removes what killed processes left half done.

    A `Path`: the home that has its catalog and its artifacts itself. ``may_be_lost``: a new, empty one takes the place
    of a catalog that was lost, to be restored. Raises CatalogUnavailable when the folder or the database cannot be
    used, or the catalog of the artifacts that are there is gone; ConfigError for URLs that name no database or no
    store. A shared store is not asked yet.
    """
    if isinstance(home, Path):
        home = Home(home)
    shared = home.shared_artifacts
    try:
        home.path.mkdir(parents=True, exist_ok=True)
        artifacts = ArtifactStore(home.artifacts_folder, shared)
    except OSError as error:
        raise CatalogUnavailable(f"{home.path} cannot be used as a home: {error}") from error
    if not may_be_lost:
        _check_not_lost(home, artifacts)
    catalog = Catalog(home.catalog_url)
    artifacts.clean_temporary()
    return catalog, artifacts


def _check_not_lost(home: Home, artifacts: ArtifactStore) -> None:
    """Raises CatalogUnavailable where there are artifacts and no catalog: a new one would say that there are none.

    A home's catalog is made, with its tables, before its first artifact comes. Of a catalog or a store elsewhere
    nothing follows: others use them, too.
    """
    if home.catalog or home.artifacts:
        return
    num_artifacts, file = len(artifacts.digests()), home.path / CATALOG_FILE  # in this order: a home may just be made
    if num_artifacts and not (file.exists() and file.stat().st_size):
        raise CatalogUnavailable(
            f"{file} is {'empty' if file.exists() else 'not there'}, and beside it are {num_artifacts} versions' "
            f"artifacts: the catalog was lost, or is elsewhere (--catalog, RM_CATALOG). Put the file back, or what "
            f"`rm-server backup` wrote: rm-server restore FILE --home {home.path}. To begin anew, move "
            f"{artifacts.root} away."
        )


def add_version(
    catalog: Catalog,
    artifacts: ArtifactStore,
    model: str,
    folder: Path,
    *,
    actor: str,
    comment: str = "",
    origin: str = "",
    manifest: Manifest | None = None,
    corrects_golden: bool = True,
    check_model: CheckModel = any_model,
) -> tuple[VersionRecord, bool]:
    """Copies a folder in and registers it: (record, True), or (record, False) when the model has that content already.

    Golden examples are the version's own, whatever came with the same content before; those of a content that the model
    has already take the place of that version's, if ``corrects_golden``.
    ``manifest`` stands in for the folder's own ``reward_model.json``. ``check_model`` is asked about every other model
    whose versions this one stands on, before anything is added. Raises what it, `ArtifactStore.put` and
    `Catalog.register` raise. Killed in between, it leaves files that no version names, for `sweep_artifacts`.
    """
    check_entries(folder)
    manifest = manifest or read_manifest(folder)
    pinning = as_version(catalog, artifacts, model, folder, manifest, actor=actor, check_model=check_model)
    with artifacts.hold(), pinning as folder:
        digest = artifacts.put(folder, manifest)
        return catalog.register(
            model,
            digest,
            manifest.kind,
            manifest.max_tokens,
            actor,
            comment,
            origin=origin,
            parts=_parts_of(folder, manifest.kind, catalog.snapshot()),
            golden_json=manifest.golden_json(),
            corrects_golden=corrects_golden,
        )


@contextmanager
def as_version(
    catalog: Catalog,
    artifacts: ArtifactStore,
    model: str,
    folder: Path,
    manifest: Manifest,
    *,
    actor: str,
    check_model: CheckModel = any_model,
) -> Iterator[Path]:
    """The folder whose files become the version's, for the time: a composite's parts, an adapter's base are pinned.

    Raises what `pinned_folder` and `add_base` raise.
    """
    if manifest.kind == "composite":
        with pinned_folder(folder, catalog.snapshot(), artifacts, check_model) as pinned:
            yield pinned
    elif manifest.kind == "lora":
        base = add_base(catalog, artifacts, model, folder, actor=actor, check_model=check_model)
        with pinned_adapter(folder, base, artifacts) as pinned:
            yield pinned
    else:
        yield folder


def _parts_of(folder: Path, kind: str, snapshot: Snapshot) -> Mapping[VersionKey, str]:
    """The versions that this one stands on, with their digests."""
    if kind == "composite":
        return parts_of(folder, snapshot)
    if kind == "lora":
        base = base_of(folder, snapshot)
        return {base.key: base.digest}
    return {}


def sweep_artifacts(catalog: Catalog, artifacts: ArtifactStore) -> tuple[str, ...]:
    """Removes the files of this machine that no version names, and returns their digests."""
    return artifacts.sweep(lambda: {record.digest for record in catalog.snapshot().versions.values()})


def missing_artifacts(catalog: Catalog, artifacts: ArtifactStore) -> tuple[VersionRecord, ...]:
    """The versions whose files are not there, after a restore for example; of a shared store, not of its cache."""
    there = set(artifacts.digests() if artifacts.shared is None else artifacts.shared.digests())
    return tuple(record for record in catalog.snapshot().versions.values() if record.digest not in there)


def operating_system_user() -> str:
    """Who acts when nobody is named."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"
