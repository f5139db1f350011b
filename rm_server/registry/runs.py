"""Runs in the catalog: the version that each was given, its signs of life, and what it was scored with.

Not in the history, and no new revision of the catalog. What runs are given is counted by `run_revision` instead, so
that a server asks only for what changed. The times come from the servers; their clocks should agree to a second or so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, delete, func, insert, or_, select, tuple_, update

from rm_server.errors import RunNotFound
from rm_server.registry import queries
from rm_server.registry.catalog import Catalog
from rm_server.registry.records import VersionKey
from rm_server.registry.run_records import Lease, RunStatistics
from rm_server.registry.tables import run_statistics, runs, state

_CHUNK = 500
"""Rows asked for by name at once; databases limit the parameters of a query."""


@dataclass(frozen=True, slots=True)
class Holders:
    """The runs that hold a version: how many, and one of them by name."""

    num_runs: int
    first: str


@dataclass(frozen=True, slots=True)
class Look:
    """What a server that follows the catalog asks again and again: whether anything changed, and who holds what."""

    revision: int
    run_revision: int
    holders: Mapping[VersionKey, Holders]


def look(catalog: Catalog, now: float) -> Look:
    """Both revisions, and the versions that active leases name. Cheap."""
    query = (
        select(runs.c.model, runs.c.version, func.count().label("num_runs"), func.min(runs.c.run).label("first"))
        .where(runs.c.has_ended.is_(False), runs.c.lease_expires_at > _time(now))
        .group_by(runs.c.model, runs.c.version)
    )
    with catalog.database.reading() as connection:
        counts = connection.execute(select(state.c.revision, state.c.run_revision)).one()
        holders = {(row.model, row.version): Holders(row.num_runs, row.first) for row in connection.execute(query)}
        return Look(counts.revision, counts.run_revision, holders)


def find_run(catalog: Catalog, run: str, model: str) -> Lease | None:
    """What the run holds, or held last."""
    with catalog.database.reading() as connection:
        return _find(connection, run, model)


def changed_runs(catalog: Catalog, run_revision: int) -> tuple[Lease, ...]:
    """The runs that were given a version, or ended, since then; oldest change first."""
    query = select(runs).where(runs.c.revision > run_revision).order_by(runs.c.revision)
    with catalog.database.reading() as connection:
        return tuple(_lease(row) for row in connection.execute(query))


def assign_run(catalog: Catalog, lease: Lease, seen: Lease | None) -> tuple[Lease, bool]:
    """Gives the run a version, if what it has is still what the caller saw; else (what it has now, False).

    ``seen`` None: it had none. So two servers that give the same run a version at once agree: the second one gets what
    the first one gave. Raises ModelNotFound, VersionNotFound.
    """
    with catalog.database.writing() as connection:
        present = _find(connection, lease.run, lease.model)
        if present is not None and (seen is None or seen.revision != present.revision):
            return present, False
        queries.require_version(connection, lease.model, lease.version)
        lease = replace(lease, revision=_next_run_revision(connection))
        if present is None:
            connection.execute(insert(runs).values(_row(lease) | {"register_time": _time(lease.last_seen)}))
        else:
            connection.execute(update(runs).where(_is(lease.run, lease.model)).values(_row(lease)))
        return lease, True


def end_runs(catalog: Catalog, run: str, model: str | None, now: float) -> tuple[Lease, ...]:
    """Ends the run's lease on a model, or all of its leases (None). Raises RunNotFound where it never had one."""
    query = select(runs).where(runs.c.run == run, *(() if model is None else (runs.c.model == model,)))
    with catalog.database.writing() as connection:
        known = [_lease(row) for row in connection.execute(query)]
        if not known:
            raise RunNotFound(f"The run {run!r} has no lease" + (f" on {model!r}." if model is not None else "."))
        revision = _next_run_revision(connection)
        ended = [
            replace(lease, expires_at=min(now, lease.expires_at), has_ended=True, revision=revision) for lease in known
        ]
        for lease in ended:
            connection.execute(update(runs).where(_is(run, lease.model)).values(_row(lease)))
        return tuple(ended)


def write_activity(catalog: Catalog, renewed: Sequence[Lease], statistics: Sequence[RunStatistics]) -> None:
    """Signs of life, and what has been scored since the last time; one transaction.

    A lease that was ended, or given another version, since the server saw it stays as it is.
    """
    with catalog.database.writing() as connection:
        if renewed:
            connection.execute(
                update(runs)
                .where(
                    runs.c.run == bindparam("of_run"),
                    runs.c.model == bindparam("of_model"),
                    runs.c.revision == bindparam("of_revision"),
                    runs.c.last_seen < bindparam("seen"),
                )
                .values(last_seen=bindparam("seen"), lease_expires_at=bindparam("until")),
                [
                    {
                        "of_run": lease.run,
                        "of_model": lease.model,
                        "of_revision": lease.revision,
                        "seen": _time(lease.last_seen),
                        "until": _time(lease.expires_at),
                    }
                    for lease in renewed
                ],
            )
        for start in range(0, len(statistics), _CHUNK):
            _add_statistics(connection, statistics[start : start + _CHUNK])


def list_runs(catalog: Catalog, model: str | None, run: str | None) -> tuple[list[Lease], list[RunStatistics]]:
    """What is known of runs; None: of all models, of all runs."""

    def of(table: Any) -> Any:
        wanted = {table.c.model: model, table.c.run: run}
        return select(table).where(*(column == value for column, value in wanted.items() if value is not None))

    with catalog.database.reading() as connection:
        leases = [_lease(row) for row in connection.execute(of(runs))]
        return leases, [_statistics(row) for row in connection.execute(of(run_statistics))]


def forget_runs(catalog: Catalog, max_known: int, now: float) -> int:
    """Keeps the runs that were seen last, ``max_known`` of them, and all that have a lease; how many were forgotten."""
    with catalog.database.reading() as connection:  # most often there is nothing to do, and then nobody waits
        num_runs = connection.scalar(select(func.count()).select_from(runs)) or 0
        num_statistics = connection.scalar(select(func.count()).select_from(run_statistics)) or 0
    if max(num_runs, num_statistics) <= max_known:
        return 0
    is_over = or_(runs.c.has_ended, runs.c.lease_expires_at <= _time(now))
    with catalog.database.writing() as connection:
        newest_too_many = select(runs.c.last_seen).order_by(runs.c.last_seen.desc()).offset(max_known).limit(1)
        # The oldest first: those that have a lease, and stay, shall not be all that is looked at.
        old = select(runs.c.run, runs.c.model).where(is_over, runs.c.last_seen <= newest_too_many.scalar_subquery())
        rows = _rows(connection, old.order_by(runs.c.last_seen, runs.c.run))
        gone = delete(runs).where(tuple_(runs.c.run, runs.c.model).in_(rows))
        num_forgotten = connection.execute(gone).rowcount
        key = (run_statistics.c.run, run_statistics.c.model, run_statistics.c.version)
        old = select(*key).order_by(run_statistics.c.last_seen.desc(), *key).offset(max_known)
        connection.execute(delete(run_statistics).where(tuple_(*key).in_(_rows(connection, old))))
        return num_forgotten


def _rows(connection: Connection, query: Any) -> list[tuple[Any, ...]]:
    """At most a chunk of them: the rest is for the next time."""
    return [tuple(row) for row in connection.execute(query.limit(_CHUNK))]


def _add_statistics(connection: Connection, chunk: Sequence[RunStatistics]) -> None:
    key = (run_statistics.c.run, run_statistics.c.model, run_statistics.c.version)
    query = select(run_statistics).where(tuple_(*key).in_([part.key for part in chunk]))
    present = {(known := _statistics(row)).key: known for row in connection.execute(query)}
    if present:
        connection.execute(delete(run_statistics).where(tuple_(*key).in_(list(present))))
    for part in chunk:
        if (known := present.setdefault(part.key, part)) is not part:
            known.merge(part)
    connection.execute(
        insert(run_statistics),
        [
            {name: getattr(part, name) for name in RunStatistics.__dataclass_fields__}
            | {"last_seen": _time(part.last_seen)}
            for part in present.values()
        ],
    )


def _next_run_revision(connection: Connection) -> int:
    number = int(connection.execute(select(state.c.run_revision)).scalar_one()) + 1
    connection.execute(update(state).values(run_revision=number))
    return number


def _find(connection: Connection, run: str, model: str) -> Lease | None:
    row = connection.execute(select(runs).where(_is(run, model))).one_or_none()
    return None if row is None else _lease(row)


def _is(run: str, model: str) -> Any:
    return and_(runs.c.run == run, runs.c.model == model)


def _row(lease: Lease) -> dict[str, Any]:
    return {
        "run": lease.run,
        "model": lease.model,
        "version": lease.version,
        "digest": lease.digest,
        "arm": lease.arm or "",
        "lease_s": lease.lease_s,
        "last_seen": _time(lease.last_seen),
        "lease_expires_at": _time(lease.expires_at),
        "has_ended": lease.has_ended,
        "revision": lease.revision,
    }


def _lease(row: Row[Any]) -> Lease:
    return Lease(
        run=row.run,
        model=row.model,
        version=row.version,
        digest=row.digest,
        arm=row.arm or None,
        lease_s=row.lease_s,
        last_seen=row.last_seen.timestamp(),
        expires_at=row.lease_expires_at.timestamp(),
        has_ended=row.has_ended,
        revision=row.revision,
    )


def _statistics(row: Row[Any]) -> RunStatistics:
    fields = {name: getattr(row, name) for name in RunStatistics.__dataclass_fields__}
    return RunStatistics(**fields | {"last_seen": row.last_seen.timestamp()})


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
