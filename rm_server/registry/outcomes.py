"""Outcomes in the catalog: what came of runs by any metric, each with the version and arm that the run had then."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import and_, func, insert, select, update

from rm_server.errors import InvalidRequest
from rm_server.registry import queries
from rm_server.registry.catalog import Catalog
from rm_server.registry.records import Split
from rm_server.registry.tables import outcomes, run_statistics, runs

MAX_OUTCOMES_OF_RUN = 10_000
"""Of one run and model. Outcomes are evaluations now and then; what a trainer logs each step belongs elsewhere."""

_METRIC = re.compile(r"[A-Za-z0-9._/-]{1,64}")
_LARGEST_VALUE = 1e100  # so that squares and sums of them stay finite
_LARGEST_STEP = 2**63 - 1
_MOST_SAMPLES = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """One value of a metric. ``step`` 0: of the run as a whole. ``arm`` empty: no split gave the run its version.

    ``num_samples``: how many judgements the value is the mean of; 0: not known.
    """

    run: str
    model: str
    metric: str
    step: int
    version: int
    arm: str
    value: float
    num_samples: int
    time: datetime


@dataclass(frozen=True, slots=True)
class Registration:
    """A run in an arm, and when it was registered first."""

    run: str
    arm: str
    time: datetime


@dataclass(frozen=True, slots=True)
class Records:
    """All that an experiment's report is made from. ``versions``: those that scored each run."""

    outcomes: tuple[Outcome, ...]
    registrations: tuple[Registration, ...]
    versions: Mapping[str, frozenset[int]]
    split: Split | None


def check_outcome(metric: str, value: float, step: int, num_samples: int) -> None:
    """Raises InvalidRequest where this can be no outcome."""
    if not _METRIC.fullmatch(metric):
        raise InvalidRequest(f"{metric[:200]!r} cannot name a metric: 1 to 64 letters, digits, '.', '_', '-', '/' can.")
    if not abs(value) <= _LARGEST_VALUE:  # NaN neither
        raise InvalidRequest(
            f"The value of {metric} is {value}; a finite number up to {_LARGEST_VALUE:g} in size was expected."
        )
    if not 0 <= step <= _LARGEST_STEP:
        raise InvalidRequest(f"The step is {step}; 0 (the run as a whole) to {_LARGEST_STEP} was expected.")
    if not 0 <= num_samples <= _MOST_SAMPLES:
        raise InvalidRequest(f"num_samples is {num_samples}; 0 (not known) to {_MOST_SAMPLES} was expected.")


def put_outcome(catalog: Catalog, outcome: Outcome) -> None:
    """Keeps it; of one of the same run, metric and step it replaces the value, and not what the run had then: a run
    that moved since still counts for the arm that it had when it reported first.

    Raises InvalidRequest, ModelNotFound.
    """
    check_outcome(outcome.metric, outcome.value, outcome.step, outcome.num_samples)
    of_run = and_(outcomes.c.run == outcome.run, outcomes.c.model == outcome.model)
    with catalog.database.writing() as connection:
        queries.require_model(connection, outcome.model)
        again = update(outcomes).where(of_run, outcomes.c.metric == outcome.metric, outcomes.c.step == outcome.step)
        if connection.execute(again.values(value=outcome.value, num_samples=outcome.num_samples)).rowcount:
            return
        num_kept = connection.scalar(select(func.count()).select_from(outcomes).where(of_run)) or 0
        if num_kept >= MAX_OUTCOMES_OF_RUN:
            raise InvalidRequest(
                f"The run {outcome.run!r} has {num_kept} outcomes of {outcome.model!r} already, the most there can be. "
                "Report evaluations, not every training step."
            )
        connection.execute(insert(outcomes).values(asdict(outcome)))


def experiment_records(catalog: Catalog, model: str) -> Records:
    """The outcomes of a model's runs, earliest first, and what is known of its runs. Raises ModelNotFound."""
    columns = [outcomes.c[name] for name in Outcome.__slots__]
    with catalog.database.reading() as connection:
        queries.require_model(connection, model)
        kept = connection.execute(
            select(*columns)
            .where(outcomes.c.model == model)
            .order_by(outcomes.c.time, outcomes.c.step, outcomes.c.run, outcomes.c.metric)
        )
        given = connection.execute(
            select(runs.c.run, runs.c.arm, runs.c.register_time)
            .where(runs.c.model == model, runs.c.arm != "")
            .order_by(runs.c.run)
        )
        scored = connection.execute(
            select(run_statistics.c.run, run_statistics.c.version).where(run_statistics.c.model == model)
        )
        versions: dict[str, set[int]] = {}
        for row in scored:
            versions.setdefault(row.run, set()).add(row.version)
        return Records(
            outcomes=tuple(Outcome(*row) for row in kept),
            registrations=tuple(Registration(*row) for row in given),
            versions={run: frozenset(numbers) for run, numbers in versions.items()},
            split=queries.splits_by_model(connection).get(model),
        )
