"""Finds the version that ``model@3`` or ``model@label`` names in a catalog, for commands that work on a home."""

from __future__ import annotations

from rm_server.errors import InvalidSelector, LabelNotFound, ModelNotFound, VersionNotFound
from rm_server.registry.records import Snapshot, VersionRecord


def find_version(snapshot: Snapshot, name: str) -> VersionRecord:
    """Raises InvalidSelector, ModelNotFound, LabelNotFound or VersionNotFound."""
    model, _, which = name.rpartition("@")
    if not model or not which:
        raise InvalidSelector(f"{name!r} names no version; write model@version or model@label.")
    numbers = snapshot.versions_of(model)
    if not numbers:
        raise ModelNotFound(f"There is no model {model!r}; known are {', '.join(snapshot.models()) or 'none'}.")
    if which.isdecimal():
        number = int(which)
    else:
        labels = snapshot.labels_of(model)
        if which not in labels:
            raise LabelNotFound(f"{model!r} has no label {which!r}; it has {', '.join(labels) or 'none'}.")
        number = labels[which]
    if number not in numbers:
        raise VersionNotFound(f"{model!r} has no version {number}; it has {', '.join(map(str, numbers))}.")
    return snapshot.versions[model, number]
