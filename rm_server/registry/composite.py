"""`composite.json` before it is a version: the components that name versions are pinned to numbers and digests.

    {"components": [
        {"name": "grammar", "version": "grammar@stable", "weight": 1.0, "gain": 1, "bias": 0, "clip": [-5, 5]},
        {"name": "brevity", "rule": {"type": "length", "max": 80, "soft": 20}, "weight": 0.5}]}

becomes, with ``stable`` naming version 2 now, ``"version": "grammar@2", "digest": "…"``. A component that says
``"calibrated": true`` also gets the ``calibration`` that the version has now: a composite's scores never change, so
what is computed from the parts may not either. What else a component says is read by `backends.composite`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rm_server.errors import ArtifactUnreadable, DigestMismatch, NotCalibrated, RmError, UnsupportedArtifact
from rm_server.registry.artifacts import ArtifactStore
from rm_server.registry.records import Snapshot, VersionKey, VersionRecord, version_name
from rm_server.registry.versions_by_name import CheckModel, any_model, find_version

FILE_NAME = "composite.json"


def read_components(folder: Path) -> list[dict[str, Any]]:
    """The components as the file has them. Raises ArtifactUnreadable, UnsupportedArtifact."""
    path = folder / FILE_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactUnreadable(f"{folder} has no {FILE_NAME}.") from None
    except (OSError, ValueError) as error:
        raise ArtifactUnreadable(f"{path} cannot be read: {error}") from error
    components = content.get("components") if isinstance(content, dict) and set(content) == {"components"} else None
    if not isinstance(components, list) or not components or not all(isinstance(part, dict) for part in components):
        raise UnsupportedArtifact(f'{path} must be {{"components": […]}}, a list of at least one JSON object.')
    return components


@contextmanager
def pinned_folder(
    folder: Path, snapshot: Snapshot, artifacts: ArtifactStore, check_model: CheckModel = any_model
) -> Iterator[Path]:
    """A folder with the pinned `composite.json`, for the time; the same for one that is pinned already.

    Raises what `read_components` raises; ModelNotFound, VersionNotFound, LabelNotFound, InvalidSelector, DigestMismatch
    and NotCalibrated for components that cannot be pinned, UnsupportedArtifact for one that is a composite itself, and
    what ``check_model`` raises.
    """
    components = [_pinned(component, snapshot, check_model) for component in read_components(folder)]
    with artifacts.scratch() as scratch:
        text = json.dumps({"components": components}, indent=2, ensure_ascii=False) + "\n"
        (scratch / FILE_NAME).write_text(text, encoding="utf-8")
        yield scratch


def parts_of(folder: Path, snapshot: Snapshot) -> Mapping[VersionKey, str]:
    """The versions that a pinned composite is made of, with their digests."""
    named = [component["version"] for component in read_components(folder) if "version" in component]
    records = [find_version(snapshot, name) for name in named]
    return {record.key: record.digest for record in records}


def _pinned(component: dict[str, Any], snapshot: Snapshot, check_model: CheckModel) -> dict[str, Any]:
    if "version" not in component:
        return component
    name = str(component["version"])
    where = f"Component {component.get('name', name)!r}"
    try:
        record = find_version(snapshot, name, check_model)
    except RmError as error:
        raise type(error)(f"{where}: {error.message}") from None
    if record.kind == "composite":
        raise UnsupportedArtifact(f"{where}: {name} is a composite. Name its components here instead.")
    if component.get("digest", record.digest) != record.digest:
        raise DigestMismatch(
            f"{where}: {name} has the digest {record.digest} here, and {component['digest']} was expected."
        )
    pinned = {**component, "version": version_name(record.key), "digest": record.digest}
    if component.get("calibrated") is True and "calibration" not in component:
        pinned["calibration"] = _calibration(where, record)
    return pinned


def _calibration(where: str, record: VersionRecord) -> dict[str, Any]:
    if record.calibration is None:
        raise NotCalibrated(
            f"{where} shall be calibrated, and {version_name(record.key)} has no calibration. "
            "Compute one, or leave `calibrated` out."
        )
    return asdict(record.calibration)
