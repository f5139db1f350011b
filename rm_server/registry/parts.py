"""What versions stand on, in the catalog, so that it is not deleted: composites on their parts, adapters on a base."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, and_, insert, select

from rm_server.errors import DigestMismatch
from rm_server.registry import queries
from rm_server.registry.records import VersionKey
from rm_server.registry.tables import components, versions


def insert_parts(connection: Connection, composite: VersionKey, parts: Mapping[VersionKey, str]) -> None:
    """Notes the parts of a new version. ``parts``: with their digests.

    Raises ModelNotFound, VersionNotFound, or DigestMismatch for what is not in the catalog as it is said to be.
    """
    for (model, version), digest in parts.items():
        row = queries.require_version(connection, model, version)
        if row.digest != digest:
            raise DigestMismatch(f"{model}@{version} has the digest {row.digest}, not {digest}.")
        connection.execute(
            insert(components).values(model=composite[0], version=composite[1], part_model=model, part_version=version)
        )


def parts_by_composite(connection: Connection) -> dict[VersionKey, tuple[VersionKey, ...]]:
    """The parts of every composite, sorted. An adapter's base is not loaded by itself, so it is none of them."""
    found: dict[VersionKey, tuple[VersionKey, ...]] = {}
    whole = and_(components.c.model == versions.c.model, components.c.version == versions.c.version)
    query = select(components).join(versions, whole).where(versions.c.kind != "lora")
    for row in connection.execute(query.order_by(*components.primary_key)):
        key = (row.model, row.version)
        found[key] = (*found.get(key, ()), (row.part_model, row.part_version))
    return found
