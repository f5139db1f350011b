"""The base of a LoRA version: a version of its own, pinned by number and digest, so that many adapters share one copy.

A version of the kind ``lora`` holds the adapter (`adapter_config.json`, `adapter_model.safetensors`) and `base.json`:

    {"version": "qwen-base@1", "digest": "…"}

Before it is registered its folder may also name just the version, or hold the base in ``base/``: then that becomes a
version, too, of the model ``<model>-base``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rm_server.errors import ArtifactUnreadable, DigestMismatch, RmError, UnsupportedArtifact
from rm_server.registry.artifacts import ArtifactStore
from rm_server.registry.layout import (
    ADAPTER_CONFIG,
    BASE_FILE,
    BASE_FOLDER,
    adapter_files,
    files_beside,
    tokenizer_files,
)
from rm_server.registry.manifest import FILE_NAME as MANIFEST_NAME
from rm_server.registry.manifest import Kind, Manifest, read_manifest
from rm_server.registry.names import check_digest
from rm_server.registry.records import Snapshot, VersionRecord, version_name
from rm_server.registry.versions_by_name import CheckModel, any_model, find_version

if TYPE_CHECKING:
    from rm_server.registry.catalog import Catalog

BASE_KIND: Kind = "sequence_classification"


@dataclass(frozen=True, slots=True)
class BaseName:
    """What `base.json` says. ``digest`` empty: not pinned yet."""

    version: str
    digest: str = ""


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter, as peft saves it."""
    return (folder / ADAPTER_CONFIG).is_file()


def read_base_name(folder: Path) -> BaseName:
    """Which version the adapter in ``folder`` belongs to. Raises ArtifactUnreadable, UnsupportedArtifact."""
    path = folder / BASE_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactUnreadable(
            f"{folder} is an adapter without its base; {ADAPTER_CONFIG} says base_model_name_or_path "
            f"{trained_on(folder)!r}. Name it with `rm-server register --base` (model@1, a folder, or "
            f"hf://org/name@revision), put its checkpoint into {folder / BASE_FOLDER}, or name a registered version "
            f'in {BASE_FILE}: {{"version": "model@1"}}.'
        ) from None
    except (OSError, ValueError) as error:
        raise ArtifactUnreadable(f"{path} cannot be read: {error}") from error
    is_known = isinstance(content, dict) and "version" in content and set(content) <= {"version", "digest"}
    if not is_known or not all(isinstance(value, str) for value in content.values()):
        raise UnsupportedArtifact(f'{path} must be {{"version": "model@1"}}, with a "digest" where it is pinned.')
    return BaseName(**content)


def trained_on(folder: Path) -> object:
    """What peft noted: often a path on another machine, or a name that means one thing today and another tomorrow.

    Raises ArtifactUnreadable.
    """
    try:
        content = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactUnreadable(f"{folder / ADAPTER_CONFIG} cannot be read: {error}") from error
    return content.get("base_model_name_or_path") if isinstance(content, dict) else None


def write_base_name(folder: Path, name: BaseName) -> None:
    """Writes `base.json`."""
    content = {key: value for key, value in asdict(name).items() if value}
    (folder / BASE_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def base_folder(folder: Path) -> Path:
    """The base's files: ``base/`` of a folder that is no version yet, else the base's artifact beside this one.

    Raises ArtifactUnreadable where they are not there, UnsupportedArtifact.
    """
    if (folder / BASE_FOLDER).is_dir():
        return folder / BASE_FOLDER
    name = read_base_name(folder)
    if not name.digest:
        raise ArtifactUnreadable(f"{folder} names its base {name.version} and not yet its digest; register it first.")
    base = folder.parent / check_digest(name.digest)
    if not base.is_dir():
        raise ArtifactUnreadable(
            f"{base}, the base {name.version} of the adapter in {folder}, is missing. "
            "Register the base again, or put its files back from a backup."
        )
    return base


def folder_with_base(artifacts: ArtifactStore, digest: str) -> Path:
    """The folder of a version's files; where it is an adapter, its base's is beside it then, from a shared store too.

    Raises what `ArtifactStore.path` and `read_base_name` raise.
    """
    folder = artifacts.path(digest)
    if is_adapter(folder):
        artifacts.path(read_base_name(folder).digest)
    return folder


def tokenizer_folder(folder: Path) -> Path:
    """Where an adapter's tokenizer is: beside it, else its base's."""
    return folder if tokenizer_files(folder) else base_folder(folder)


def add_base(
    catalog: Catalog,
    artifacts: ArtifactStore,
    model: str,
    folder: Path,
    *,
    actor: str,
    check_model: CheckModel = any_model,
) -> BaseName:
    """The base of the adapter in ``folder``, pinned; the one in ``base/`` is registered first, as ``<model>-base``.

    Raises what `ArtifactStore.put`, `Catalog.register` and `read_base_name` raise; ModelNotFound, VersionNotFound,
    LabelNotFound, InvalidSelector, DigestMismatch and UnsupportedArtifact for a base that cannot be pinned, and what
    ``check_model`` raises of the base's model.
    """
    if (folder / BASE_FOLDER).is_dir() and not (folder / BASE_FILE).is_file():
        base, base_model = folder / BASE_FOLDER, f"{model}-base"
        check_model(base_model)
        has_manifest = (base / MANIFEST_NAME).is_file()
        manifest = read_manifest(base) if has_manifest else Manifest(BASE_KIND)
        with artifacts.hold():
            digest = artifacts.put(base, manifest)
            record, _ = catalog.register(
                base_model,
                digest,
                manifest.kind,
                manifest.max_tokens,
                actor,
                "the base of adapters; not to be loaded by itself" if not has_manifest else "the base of adapters",
                golden_json=manifest.golden_json(),
            )
        return BaseName(version_name(record.key), record.digest)
    return pinned_base(catalog.snapshot(), read_base_name(folder), check_model)


def pinned_base(snapshot: Snapshot, name: BaseName, check_model: CheckModel = any_model) -> BaseName:
    """The name with number and digest. Raises RmError's members for one that is not there or is no checkpoint."""
    try:
        record = find_version(snapshot, name.version, check_model)
    except RmError as error:
        raise type(error)(f"The adapter's base: {error.message}") from None
    if record.kind != BASE_KIND:
        raise UnsupportedArtifact(f"The adapter's base {name.version} is of the kind {record.kind}, no checkpoint.")
    if name.digest not in ("", record.digest):
        raise DigestMismatch(
            f"The adapter's base {name.version} has the digest {record.digest} here, and {name.digest} was expected."
        )
    return BaseName(version_name(record.key), record.digest)


@contextmanager
def pinned_adapter(folder: Path, name: BaseName, artifacts: ArtifactStore) -> Iterator[Path]:
    """A folder with the adapter, its pinned `base.json`, and a link to the base in ``base/``, for the time."""
    with artifacts.scratch() as scratch:
        write_base_name(scratch, name)
        for path in (*adapter_files(folder), *files_beside(folder)):
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / path, scratch / path)
        (scratch / BASE_FOLDER).symlink_to(artifacts.path(name.digest).resolve(), target_is_directory=True)
        yield scratch


def base_of(folder: Path, snapshot: Snapshot) -> VersionRecord:
    """The version that a pinned adapter belongs to. Raises what `read_base_name` and `find_version` raise."""
    return find_version(snapshot, read_base_name(folder).version)
