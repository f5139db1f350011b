"""Shadows in the catalog, and the pairs of scores by which they are compared: the newest of each pair of versions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, and_, delete, func, insert, select

from rm_server.errors import InvalidRequest, VersionNotFound
from rm_server.registry import queries
from rm_server.registry.catalog import Catalog
from rm_server.registry.records import Shadow
from rm_server.registry.tables import shadow_pairs, shadows


@dataclass(frozen=True, slots=True)
class ShadowPair:
    """One completion's raw scores by both. ``group_key``: the same for the completions of one prompt of one call.

    ``run`` empty: the anonymous run. ``prompt`` and ``completion`` are empty unless texts are logged.
    """

    model: str
    shadow_version: int
    version: int
    time: datetime
    run: str
    group_key: str
    score: float
    shadow_score: float
    prompt: str = ""
    completion: str = ""


def check_share(share: float) -> None:
    """Raises InvalidRequest where no shadow can have this share."""
    if not 0 < share <= 1:  # NaN neither
        raise InvalidRequest(f"The share of a shadow is above 0 and at most 1, not {share:g}.")


def set_shadow(catalog: Catalog, model: str, version: int, share: float, actor: str, comment: str = "") -> Shadow:
    """Lets a version score a share of its model's calls, too; one that does so already gets the new share.

    Raises InvalidRequest, ModelNotFound, VersionNotFound.
    """
    check_share(share)
    with catalog.changing(actor, comment) as change:
        queries.require_version(change.connection, model, version)
        known = change.connection.execute(select(shadows).where(_is(model, version))).one_or_none()
        if known is not None and known.share == share:
            return Shadow(model, version, share, known.create_time)
        change.connection.execute(delete(shadows).where(_is(model, version)))
        create_time = change.time if known is None else known.create_time
        change.connection.execute(
            insert(shadows).values(model=model, version=version, share=share, create_time=create_time)
        )
        change.record("set_shadow", model, version, f"share {share:g}")
        return Shadow(model, version, share, create_time)


def remove_shadow(catalog: Catalog, model: str, version: int, actor: str, comment: str = "") -> None:
    """Ends a shadow; its pairs stay. Raises ModelNotFound, VersionNotFound (also where it is no shadow)."""
    with catalog.changing(actor, comment) as change:
        queries.require_version(change.connection, model, version)
        if not change.connection.execute(delete(shadows).where(_is(model, version))).rowcount:
            known = [str(number) for name, number in queries.shadows(change.connection) if name == model]
            there = f"Shadows of {model!r}: {', '.join(known)}." if known else f"{model!r} has no shadows."
            raise VersionNotFound(f"{model}@{version} is no shadow. {there}")
        change.record("remove_shadow", model, version, "")


def add_pairs(catalog: Catalog, pairs: Sequence[ShadowPair], max_pairs: int) -> None:
    """Appends pairs; of each (model, shadow, version) the newest ``max_pairs`` stay.

    The newest rather than a sample of all: the report is about the traffic of now. No change in the history's sense.
    """
    if not pairs:
        return
    with catalog.database.writing() as connection:
        connection.execute(
            insert(shadow_pairs),
            [{name: getattr(pair, name) for name in ShadowPair.__slots__} for pair in pairs],
        )
        for model, shadow_version, version in {(pair.model, pair.shadow_version, pair.version) for pair in pairs}:
            of_both = _of_both(model, shadow_version, version)
            newest_too_many = (
                select(shadow_pairs.c.id).where(of_both).order_by(shadow_pairs.c.id.desc()).offset(max_pairs).limit(1)
            )
            if (last := connection.scalar(newest_too_many)) is not None:
                connection.execute(delete(shadow_pairs).where(of_both, shadow_pairs.c.id <= last))


def pairs_of(
    catalog: Catalog, model: str, shadow_version: int, version: int | None = None
) -> tuple[list[ShadowPair], Counter[int]]:
    """The pairs of a shadow with a version, oldest first, and how many there are with each version.

    ``version`` None: the one with the most pairs. No pairs are no error. Raises ModelNotFound, VersionNotFound.
    """
    with catalog.database.reading() as connection:
        queries.require_version(connection, model, shadow_version)
        if version is not None:
            queries.require_version(connection, model, version)
        counts = Counter(
            {
                row.version: row.num
                for row in connection.execute(
                    select(shadow_pairs.c.version, func.count().label("num"))
                    .where(shadow_pairs.c.model == model, shadow_pairs.c.shadow_version == shadow_version)
                    .group_by(shadow_pairs.c.version)
                )
            }
        )
        if version is None and counts:
            version = counts.most_common(1)[0][0]
        if version is None:
            return [], counts
        columns = [shadow_pairs.c[name] for name in ShadowPair.__slots__]
        rows = connection.execute(
            select(*columns).where(_of_both(model, shadow_version, version)).order_by(shadow_pairs.c.id)
        )
        return [ShadowPair(*row) for row in rows], counts


def _is(model: str, version: int) -> ColumnElement[bool]:
    return and_(shadows.c.model == model, shadows.c.version == version)


def _of_both(model: str, shadow_version: int, version: int) -> ColumnElement[bool]:
    pair = shadow_pairs.c
    return and_(pair.model == model, pair.shadow_version == shadow_version, pair.version == version)
