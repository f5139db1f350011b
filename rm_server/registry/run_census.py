"""How many runs hold what and are at work, counted in the catalog: of all servers on it, and without a run's name."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import func, select

from rm_server.registry.catalog import Catalog
from rm_server.registry.records import VersionKey
from rm_server.registry.run_records import RunStatistics
from rm_server.registry.tables import run_statistics, runs

ACTIVE_S = 300.0
"""A run that was scored within this time is at work: one step of a large run may take minutes."""

OVER_S = 3600.0
"""For how long a lease that is over is counted."""


@dataclass(frozen=True, slots=True)
class RunCensus:
    """What the runs come to.

    ``leases``: held, by version. ``leases_over``: that ran out (``expired``) or that their runs ended (``ended``)
    within OVER_S, by model and which of both. ``active``: runs scored within ACTIVE_S, by version. ``largest_share``:
    of the tokens per second of a model's active runs, what the busiest one has.
    """

    leases: Mapping[VersionKey, int]
    leases_over: Mapping[tuple[str, str], int]
    active: Mapping[VersionKey, int]
    largest_share: Mapping[str, float]


def count_runs(catalog: Catalog, now: float) -> RunCensus:
    """Reads only what is of late, over indexes. Raises CatalogUnavailable. ``now``: seconds since the epoch."""
    expires_at = runs.c.lease_expires_at
    is_held = expires_at > _time(now)
    leases = (
        select(runs.c.model, runs.c.version, func.count().label("num_runs"))
        .where(runs.c.has_ended.is_(False), is_held)
        .group_by(runs.c.model, runs.c.version)
    )
    over = (
        select(runs.c.model, runs.c.has_ended, func.count().label("num_runs"))
        # Whether it has ended or not: said so that the index over both is used.
        .where(runs.c.has_ended.in_((True, False)), runs.c.has_ended | ~is_held, expires_at > _time(now - OVER_S))
        .group_by(runs.c.model, runs.c.has_ended)
    )
    at_work = select(
        run_statistics.c.run,
        run_statistics.c.model,
        run_statistics.c.version,
        run_statistics.c.tokens_per_s,
        run_statistics.c.last_seen,
    ).where(run_statistics.c.last_seen > _time(now - ACTIVE_S))
    with catalog.database.reading() as connection:
        held = {(row.model, row.version): row.num_runs for row in connection.execute(leases)}
        gone = {(row.model, "ended" if row.has_ended else "expired"): row.num_runs for row in connection.execute(over)}
        busy = [
            RunStatistics(
                row.run, row.model, row.version, tokens_per_s=row.tokens_per_s, last_seen=row.last_seen.timestamp()
            )
            for row in connection.execute(at_work)
        ]
    return RunCensus(held, gone, Counter((part.model, part.version) for part in busy), _largest_shares(busy, now))


def _largest_shares(busy: list[RunStatistics], now: float) -> dict[str, float]:
    rates: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for part in busy:  # one for each version that scored the run
        rates[part.model][part.run] += part.rates(now)[1]
    return {model: max(of_run.values()) / total for model, of_run in rates.items() if (total := sum(of_run.values()))}


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
