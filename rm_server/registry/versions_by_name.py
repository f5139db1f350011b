"""Finds the version that ``model@3`` or ``model@label`` names in a catalog, for commands that work on a home."""

from __future__ import annotations

from collections.abc import Callable

from rm_server.errors import InvalidSelector, LabelNotFound, VersionNotFound
from rm_server.registry.records import Snapshot, VersionRecord

CheckModel = Callable[[str], None]
"""Raises PermissionDenied for a model that whoever asks may not use."""


def any_model(model: str) -> None:
    """The check of those who may use all."""


def find_version(snapshot: Snapshot, name: str, check_model: CheckModel = any_model) -> VersionRecord:
    """Raises InvalidSelector, ModelNotFound, LabelNotFound or VersionNotFound, and before them what the check does."""
    model, _, which = name.rpartition("@")
    if not model or not which:
        raise InvalidSelector(f"{name!r} names no version; write model@version or model@label.")
    check_model(model)  # first: what else is said tells what there is
    snapshot.require_known(model)
    if which.isdecimal():
        number = int(which)
    else:
        labels = snapshot.labels_of(model)
        if which not in labels:
            raise LabelNotFound(f"{model!r} has no label {which!r}; it has {', '.join(labels) or 'none'}.")
        number = labels[which]
    numbers = snapshot.versions_of(model)
    if number not in numbers:
        raise VersionNotFound(f"{model!r} has no version {number}; it has {', '.join(map(str, numbers))}.")
    return snapshot.versions[model, number]
