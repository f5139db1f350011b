"""Where a version's files come from: a folder on this machine, or the Hugging Face hub. Only data is fetched."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rm_server.errors import ArtifactUnreadable, InvalidRequest
from rm_server.registry.artifacts import ArtifactStore

HUB_PREFIX = "hf://"
# No pickles, no code; and nothing in sub-folders, where repositories keep the same weights in other formats.
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_NOT_FETCHED = ["*/*"]
_HUB_NAME = re.compile(r"hf://(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^@\s]+))?")


@contextmanager
def version_folder(source: str, artifacts: ArtifactStore) -> Iterator[Path]:
    """The folder that ``source`` names: a path, or ``hf://org/name@revision``, fetched beside the artifacts meanwhile.

    Raises InvalidRequest for a source of another form, ArtifactUnreadable when the files cannot be had.
    """
    if not source.startswith(HUB_PREFIX):
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise ArtifactUnreadable(f"{source} is no folder; give a version's folder, or hf://org/name@revision.")
        yield folder
        return
    name = _HUB_NAME.fullmatch(source)
    if name is None:
        raise InvalidRequest(f"{source!r} names nothing on the Hugging Face hub; write hf://org/name@revision.")
    with artifacts.scratch() as folder:
        _fetch(name["repo"], name["revision"], folder)
        yield folder


def _fetch(repo: str, revision: str | None, folder: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        # Into a folder of its own: the hub's cache consists of links, and a version's files are real ones.
        snapshot_download(
            repo, revision=revision, local_dir=folder, allow_patterns=_HUB_FILES, ignore_patterns=_NOT_FETCHED
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise ArtifactUnreadable(
            f"{HUB_PREFIX}{repo} at {revision or 'its main branch'} cannot be had from the Hugging Face hub: {error}"
        ) from error
