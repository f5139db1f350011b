"""Which version a selector means now."""

from __future__ import annotations

from dataclasses import dataclass

from rm_server.errors import LabelNotFound, ModelNotFound, NoDefaultVersion, RmError, VersionNotFound
from rm_server.registry.records import Snapshot, VersionKey
from rm_server.scoring.selector import Selector

DEFAULT_LABEL = "stable"
"""What a bare name means where no lease says otherwise."""


@dataclass(frozen=True, slots=True)
class Route:
    """The version that was found. ``label``: the one that named it; None: it was chosen by number or by lease."""

    key: VersionKey
    digest: str
    label: str | None = None
    arm: str | None = None


def resolve(selector: Selector, snapshot: Snapshot, lease_version: int | None) -> Route:
    """``name@3``: that version. ``name@label``: what the label names. ``name``: the run's lease, else ``stable``.

    Raises ModelNotFound, VersionNotFound, LabelNotFound, NoDefaultVersion.
    """
    model = selector.model
    label = None
    if selector.version is not None:
        version: int | None = selector.version
    elif selector.label is None and lease_version is not None:
        version = lease_version
    else:
        label = selector.label or DEFAULT_LABEL
        version = snapshot.labels.get((model, label))
    record = None if version is None else snapshot.versions.get((model, version))
    if record is None:
        raise _not_found(selector, snapshot, version)
    return Route(record.key, record.digest, label)


def _not_found(selector: Selector, snapshot: Snapshot, version: int | None) -> RmError:
    model = selector.model
    versions = snapshot.versions_of(model)
    if not versions:
        return ModelNotFound(f"The catalog has no model {model!r}; it has {', '.join(snapshot.models()) or 'none'}.")
    if version is not None:
        return VersionNotFound(f"{model} has no version {version}; it has {', '.join(map(str, versions))}.")
    labels = ", ".join(snapshot.labels_of(model)) or "none"
    if selector.label is not None:
        return LabelNotFound(f"{model} has no label {selector.label!r}; it has {labels}.")
    return NoDefaultVersion(
        f"{model} has no label {DEFAULT_LABEL!r}, and the run has no lease, so its bare name means no version. "
        f"Set that label, or ask for one of {', '.join(f'{model}@{number}' for number in versions)}; labels: {labels}."
    )
