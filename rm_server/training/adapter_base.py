"""The base of an adapter whose folder does not hold it: what `register --base` or the adapter's own config names."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rm_server.errors import InvalidRequest
from rm_server.registry.artifacts import ArtifactStore
from rm_server.registry.layout import BASE_FILE, BASE_FOLDER, adapter_files, files_beside
from rm_server.registry.lora import BaseName, is_adapter, pinned_adapter, pinned_base, trained_on
from rm_server.registry.manifest import FILE_NAME as MANIFEST_NAME
from rm_server.registry.records import Snapshot
from rm_server.training.sources import HUB_PREFIX, MLFLOW_PREFIX, version_source


def named_base(folder: Path) -> str | None:
    """``hf://org/name@revision`` where that is what an adapter without a base says in its config; else None.

    Another name is not followed: on the machine that wrote it, it may have been a folder.
    """
    if not is_adapter(folder) or any((folder / name).exists() for name in (BASE_FILE, BASE_FOLDER)):
        return None
    name = trained_on(folder)
    return name if isinstance(name, str) and name.startswith(HUB_PREFIX) else None


@contextmanager
def with_base(folder: Path, base: str, snapshot: Snapshot, artifacts: ArtifactStore) -> Iterator[Path]:
    """A folder with the adapter and its base, for the time; the adapter's own folder is not written to.

    ``base``: a folder, ``hf://org/name@revision`` or ``mlflow:…``, which lies in ``base/`` then; or a version of this
    home (``model@3``, ``model@label``), which `base.json` pins.

    Raises InvalidRequest where there is no adapter or it has a base already, and what `version_source` and
    `pinned_base` raise.
    """
    if not is_adapter(folder):
        raise InvalidRequest(f"--base {base} is for an adapter, and {folder} is none: it has no adapter_config.json.")
    present = next((name for name in (BASE_FILE, BASE_FOLDER) if (folder / name).exists()), None)
    if present is not None:
        raise InvalidRequest(f"--base {base} is given, and {folder / present} says another; leave out one of the two.")
    with ExitStack() as stack:
        if base.startswith((HUB_PREFIX, MLFLOW_PREFIX)) or "@" not in base or Path(base).expanduser().is_dir():
            source = stack.enter_context(version_source(base, artifacts))
            staged = stack.enter_context(artifacts.scratch())
            _copy(folder, (*adapter_files(folder), *files_beside(folder)), staged)
            (staged / BASE_FOLDER).symlink_to(source.folder.resolve(), target_is_directory=True)
        else:
            staged = stack.enter_context(pinned_adapter(folder, pinned_base(snapshot, BaseName(base)), artifacts))
        if (folder / MANIFEST_NAME).is_file():
            _copy(folder, (MANIFEST_NAME,), staged)
        yield staged


def _copy(folder: Path, names: tuple[str, ...], target: Path) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, target / name)
