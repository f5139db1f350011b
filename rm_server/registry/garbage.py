"""Collects the artifacts that no version names: registrations that were killed, versions that were deleted."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from rm_server.errors import InvalidRequest
from rm_server.registry.artifacts import ArtifactStore
from rm_server.registry.catalog import Catalog
from rm_server.registry.shared_store import SharedStore

MIN_AGE_S = 3600.0
"""An upload under way is not named by a version yet; it is done, or dead, after an hour."""


@dataclass(frozen=True, slots=True)
class Garbage:
    """An artifact that no version names. ``place``: the folder or the URL that it lies in."""

    digest: str
    place: str
    num_bytes: int


def collect_garbage(
    catalog: Catalog, artifacts: ArtifactStore, *, min_age_s: float = MIN_AGE_S, removes: bool = True
) -> tuple[Garbage, ...]:
    """Removes what no version names and is older than ``min_age_s``, here and in the shared store; returns it.

    ``removes`` False: only says what it would remove. The artifacts must be this catalog's alone. Raises
    InvalidRequest for a catalog without any change: then it is more likely the wrong one than all of it garbage.
    """
    if catalog.revision() == 0:
        raise InvalidRequest(
            "This catalog has never had a version, so it cannot say which artifacts are needed. Name the catalog that "
            "the artifacts belong to (--catalog, RM_CATALOG)."
        )
    sizes = {digest: artifacts.size(digest) for digest in artifacts.digests()}
    swept = artifacts.sweep(lambda: _named(catalog), min_age_s=min_age_s, removes=removes)
    garbage = [Garbage(digest, str(artifacts.root), sizes.get(digest, 0)) for digest in swept]
    if artifacts.shared is not None:
        garbage += _collect_shared(catalog, artifacts.shared, min_age_s, removes)
    return tuple(garbage)


def _collect_shared(catalog: Catalog, shared: SharedStore, min_age_s: float, removes: bool) -> list[Garbage]:
    """No lock reaches other machines: there the age is all that keeps an upload under way, so it is asked last."""
    garbage = []
    for digest in shared.digests():
        num_bytes = sum(shared.sizes(digest).values())
        if digest in _named(catalog):
            continue
        try:
            if datetime.now(UTC) - shared.last_change(digest) < timedelta(seconds=min_age_s):
                continue
            if removes:
                shared.delete(digest)
        except FileNotFoundError:
            continue  # somebody else was quicker
        garbage.append(Garbage(digest, str(shared), num_bytes))
    return garbage


def _named(catalog: Catalog) -> set[str]:
    return {record.digest for record in catalog.snapshot().versions.values()}
