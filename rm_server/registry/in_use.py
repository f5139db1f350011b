"""Who uses a version, in words for people: what is in use is not deleted."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Column, ColumnElement, Connection, Table, and_, select

from rm_server.registry.tables import components, labels, pins, runs, shadows, split_arms, versions

_MAX_NAMED = 5


def uses_of(connection: Connection, model: str, version: int, now: datetime) -> list[str]:
    """One sentence's worth a kind of use, with what to do about it; empty: nobody uses the version.

    Leases that have ended, or expired before ``now``, do not count.
    """

    def names(table: Table, column: Column[str], *where: ColumnElement[bool]) -> list[str]:
        key = and_(table.c.model == model, table.c.version == version, *where)
        return [str(name) for name in connection.scalars(select(column).where(key).order_by(column))]

    adapters = versions.c.kind == "lora"
    composites = versions.c.kind != "lora"
    found = [
        ("is named by the label {}: move or remove it", names(labels, labels.c.label)),
        ("is an arm of the split ({}): change the split", names(split_arms, split_arms.c.arm)),
        ("is pinned for the run {}: remove the pin", names(pins, pins.c.run)),
        ("is a shadow of {}: stop the shadow", names(shadows, shadows.c.model)),
        (
            "is held by the lease of the run {}: end the run, or wait until the lease expires",
            names(runs, runs.c.run, runs.c.has_ended.is_(False), runs.c.lease_expires_at > now),
        ),
        ("is a part of the composite {}: delete that first", _standing_on(connection, model, version, composites)),
        ("is the base of the adapter {}: delete that first", _standing_on(connection, model, version, adapters)),
        ("is to be loaded{}: unload it", _wanted(connection, model, version)),
    ]
    return [text.format(_listed(names)) for text, names in found if names]


def _standing_on(connection: Connection, model: str, version: int, which: ColumnElement[bool]) -> list[str]:
    whole = and_(components.c.model == versions.c.model, components.c.version == versions.c.version)
    query = (
        select(components.c.model, components.c.version)
        .join(versions, whole)
        .where(components.c.part_model == model, components.c.part_version == version, which)
    )
    return [f"{row.model}@{row.version}" for row in connection.execute(query.order_by(*query.selected_columns))]


def _wanted(connection: Connection, model: str, version: int) -> list[str]:
    key = and_(versions.c.model == model, versions.c.version == version)
    return [""] if connection.scalar(select(versions.c.wanted).where(key)) else []


def _listed(names: list[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
