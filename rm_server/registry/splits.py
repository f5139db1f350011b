"""Splits and pins in the catalog: which arms a model's runs are divided between, and which runs are exempt."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from itertools import pairwise

from sqlalchemy import Connection, and_, delete, func, insert, select

from rm_server.errors import InvalidRequest, RunNotFound
from rm_server.registry import queries
from rm_server.registry.catalog import Catalog
from rm_server.registry.change import Change
from rm_server.registry.names import check_run
from rm_server.registry.records import Arm, Split
from rm_server.registry.tables import pins, runs, split_arms, splits

MAX_SALT_LENGTH = 200
_ARM = re.compile(r"[A-Za-z0-9._-]{1,64}")


def check_split(split: Split) -> None:
    """Raises InvalidRequest where it makes no sense. Whether its versions exist is not looked at."""
    if len(split.salt) > MAX_SALT_LENGTH:
        raise InvalidRequest(f"A salt has up to {MAX_SALT_LENGTH} characters; this one has {len(split.salt)}.")
    names = [arm.name for arm in split.arms]
    for arm in split.arms:
        if not _ARM.fullmatch(arm.name):
            raise InvalidRequest(f"{arm.name!r} cannot name an arm: 1 to 64 letters, digits, '.', '_' and '-' can.")
        if names.count(arm.name) > 1:
            raise InvalidRequest(f"Two arms are named {arm.name!r}.")
        for weight in (arm.weight, *(point.weight for point in arm.ramp)):
            if not (math.isfinite(weight) and weight >= 0):
                raise InvalidRequest(
                    f"The arm {arm.name!r} has the weight {weight}; a finite one, 0 or more, is needed."
                )
        times = [point.time_s for point in arm.ramp]
        if any(later <= earlier for earlier, later in pairwise(times)):
            raise InvalidRequest(f"The ramp of the arm {arm.name!r} does not ascend in time.")
    if not any(weight > 0 for arm in split.arms for weight in (arm.weight, *(point.weight for point in arm.ramp))):
        raise InvalidRequest("A split needs an arm with a weight above 0.")


def set_split(catalog: Catalog, split: Split, actor: str, comment: str = "") -> Split:
    """Divides a model's runs, in place of the split that it has; an empty salt: that one's, else the model's name.

    ``update_time`` is ignored. Raises InvalidRequest, ModelNotFound, VersionNotFound.
    """
    check_split(split)
    with catalog.changing(actor, comment) as change:
        for arm in split.arms:
            queries.require_version(change.connection, split.model, arm.version)
        present = queries.splits_by_model(change.connection).get(split.model)
        salt = split.salt or (present.salt if present is not None else split.model)
        if present is not None and (present.salt, present.arms) == (salt, split.arms):
            return present
        _remove(change.connection, split.model)
        change.connection.execute(insert(splits).values(model=split.model, salt=salt, update_time=change.time))
        change.connection.execute(
            insert(split_arms),
            [
                {
                    "model": split.model,
                    "arm": arm.name,
                    "position": position,
                    "version": arm.version,
                    "weight": arm.weight,
                    "ramp_json": json.dumps([[point.time_s, point.weight] for point in arm.ramp]),
                }
                for position, arm in enumerate(split.arms)
            ],
        )
        change.record("set_split", split.model, 0, f"{_arms_text(split.arms)}; salt {salt}")
        return Split(split.model, split.arms, salt, change.time)


def remove_split(catalog: Catalog, model: str, actor: str, comment: str = "") -> None:
    """Ends a model's split. Raises ModelNotFound, and InvalidRequest where it has none."""
    with catalog.changing(actor, comment) as change:
        queries.require_model(change.connection, model)
        present = queries.splits_by_model(change.connection).get(model)
        if present is None:
            raise InvalidRequest(f"{model!r} has no split.")
        _remove(change.connection, model)
        change.record("remove_split", model, 0, _arms_text(present.arms))


def set_pin(catalog: Catalog, run: str, model: str, version: int, actor: str, comment: str = "") -> None:
    """Gives a run a version, whatever the split says. Raises InvalidRequest, ModelNotFound, VersionNotFound."""
    check_run(run)
    with catalog.changing(actor, comment) as change:
        queries.require_version(change.connection, model, version)
        present = _pinned(change, run, model)
        if present == version:
            return
        _unpin(change, run, model)
        change.connection.execute(insert(pins).values(model=model, run=run, version=version))
        change.record("set_pin", model, version, f"{run}: {present or 'none'} → {version}")


def remove_pin(catalog: Catalog, run: str, model: str, actor: str, comment: str = "") -> None:
    """Takes a pin away. Raises ModelNotFound, and RunNotFound where the run has none."""
    with catalog.changing(actor, comment) as change:
        queries.require_model(change.connection, model)
        present = _pinned(change, run, model)
        if present is None:
            raise RunNotFound(f"The run {run!r} is not pinned to a version of {model!r}.")
        _unpin(change, run, model)
        change.record("remove_pin", model, 0, f"{run}: {present} → none")


def count_runs(catalog: Catalog) -> Mapping[tuple[str, str], int]:
    """How many runs have been given each arm, by model and arm."""
    query = select(runs.c.model, runs.c.arm, func.count().label("num_runs")).where(runs.c.arm != "")
    with catalog.database.reading() as connection:
        rows = connection.execute(query.group_by(runs.c.model, runs.c.arm))
        return {(row.model, row.arm): row.num_runs for row in rows}


def _remove(connection: Connection, model: str) -> None:
    connection.execute(delete(split_arms).where(split_arms.c.model == model))
    connection.execute(delete(splits).where(splits.c.model == model))


def _pinned(change: Change, run: str, model: str) -> int | None:
    return change.connection.scalar(select(pins.c.version).where(pins.c.model == model, pins.c.run == run))


def _unpin(change: Change, run: str, model: str) -> None:
    change.connection.execute(delete(pins).where(and_(pins.c.model == model, pins.c.run == run)))


def _arms_text(arms: Iterable[Arm]) -> str:
    return ", ".join(
        f"{arm.name}={arm.version}:{arm.weight:g}" + (f" with {len(arm.ramp)} ramp points" if arm.ramp else "")
        for arm in arms
    )
