"""Where a version's files come from: a folder here, the Hugging Face hub, or MLflow. Only data is fetched."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from rm_server.errors import ArtifactUnreadable, InvalidRequest
from rm_server.registry.artifacts import ArtifactStore

HUB_PREFIX = "hf://"
MLFLOW_PREFIX = "mlflow:"
FORMS = "a version's folder, hf://ORG/NAME@REVISION, or mlflow:/NAME/VERSION"

# No pickles, no code; and nothing in sub-folders, where repositories keep the same weights in other formats.
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_NOT_FETCHED = ["*/*"]
_HUB_NAME = re.compile(r"hf://(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^@\s]+))?")
_MLFLOW_NAME = re.compile(r"mlflow:(?P<uri>(?:models:|runs:)?/[^\s/][^\s]*)")


@dataclass(frozen=True, slots=True)
class Source:
    """A version's folder, and where it comes from, to the last detail, for the history; empty: a folder here."""

    folder: Path
    origin: str = ""


@contextmanager
def version_source(source: str, artifacts: ArtifactStore) -> Iterator[Source]:
    """What ``source`` names: a path, ``hf://org/name@revision`` or ``mlflow:…``. Fetched beside the artifacts.

    ``mlflow:/name/3`` (or ``mlflow:models:/name/3``) is a version of MLflow's model registry, ``mlflow:runs:/id/path``
    an artifact of a run. Raises InvalidRequest for a source of another form, ArtifactUnreadable when the files cannot
    be had.
    """
    if source.startswith((HUB_PREFIX, MLFLOW_PREFIX)):
        fetch = _fetch_from_hub if source.startswith(HUB_PREFIX) else _fetch_from_mlflow
        with artifacts.scratch() as scratch:
            yield fetch(source, scratch)
        return
    check_source(source)
    yield Source(Path(source).expanduser())


def check_source(source: str) -> None:
    """What can be said before anything is fetched: raises ArtifactUnreadable for a path that is no folder."""
    if not source.startswith((HUB_PREFIX, MLFLOW_PREFIX)) and not Path(source).expanduser().is_dir():
        raise ArtifactUnreadable(f"{source} is no folder; give {FORMS}.")


def hub_snapshot(repo: str, revision: str | None) -> Path:
    """A repository's folder in the hub's cache, fetched into it; the cache also serves where the hub is out of reach.

    Raises ArtifactUnreadable.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=_HUB_FILES,
                ignore_patterns=_NOT_FETCHED,
                # Some releases of the library ask the hub for a commit's list of files even where it is switched off.
                local_files_only=constants.HF_HUB_OFFLINE,
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise ArtifactUnreadable(
            f"{HUB_PREFIX}{repo} at {revision or 'its main branch'} cannot be had from the Hugging Face hub: {error} "
            "Where the hub is out of reach, fetch it elsewhere (`hf download`) and name the folder."
        ) from error


def _fetch_from_hub(source: str, scratch: Path) -> Source:
    name = _HUB_NAME.fullmatch(source)
    if name is None:
        raise InvalidRequest(f"{source!r} names nothing on the Hugging Face hub; write hf://org/name@revision.")
    repo, revision = name["repo"], name["revision"]
    snapshot = hub_snapshot(repo, revision)
    try:
        for file in snapshot.iterdir():
            if any(fnmatch(file.name, pattern) for pattern in _HUB_FILES):  # the cache may hold more than we asked for
                _real_copy(file, scratch / file.name)
    except OSError as error:
        raise ArtifactUnreadable(f"{source} cannot be copied out of the hub's cache: {error}") from error
    # The cache names a snapshot's folder by its commit: a branch or tag may name another one tomorrow.
    return Source(scratch, f"{HUB_PREFIX}{repo}@{snapshot.name}")


def _fetch_from_mlflow(source: str, scratch: Path) -> Source:
    name = _MLFLOW_NAME.fullmatch(source)
    if name is None:
        raise InvalidRequest(
            f"{source!r} names nothing in MLflow; write mlflow:/NAME/VERSION, mlflow:models:/NAME@ALIAS or "
            "mlflow:runs:/RUN/PATH."
        )
    try:
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise InvalidRequest(
            f"{source} needs MLflow, which is not installed here: `pip install mlflow`, and set MLFLOW_TRACKING_URI."
        ) from error
    uri = name["uri"] if not name["uri"].startswith("/") else f"models:{name['uri']}"
    try:
        fetched = Path(download_artifacts(artifact_uri=uri, dst_path=str(scratch)))
    except (MlflowException, OSError) as error:
        raise ArtifactUnreadable(f"{uri} cannot be had from MLflow: {error}") from error
    return Source(_without_flavor(fetched), f"{MLFLOW_PREFIX}{uri}")


def _without_flavor(fetched: Path) -> Path:
    """A version's folder as it was logged, or made from the parts in which MLflow's transformers flavor saves one."""
    model, tokenizer = fetched / "model", fetched / "components" / "tokenizer"
    if not (fetched / "MLmodel").is_file() or not model.is_dir():
        return fetched
    if tokenizer.is_dir():
        shutil.copytree(tokenizer, model, dirs_exist_ok=True)
    return model


def _real_copy(link: Path, copy: Path) -> None:
    """The hub's cache consists of links, and a version's files are real ones. A hard link costs no room."""
    try:
        os.link(link.resolve(), copy)
    except OSError:  # on another disk, or one without hard links
        shutil.copyfile(link, copy)
