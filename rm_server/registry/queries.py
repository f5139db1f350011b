"""Questions to the catalog's tables within a caller's transaction, with answers that say what there is instead."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, Row, select

from rm_server.errors import LabelNotFound, ModelNotFound, VersionNotFound
from rm_server.registry.records import (
    Arm,
    CalibrationRecord,
    HistoryRecord,
    RampPoint,
    ServingProfile,
    Shadow,
    Split,
    VersionKey,
    VersionRecord,
)
from rm_server.registry.tables import labels, models, pins, serving_profiles, split_arms, splits, state, versions
from rm_server.registry.tables import shadows as shadow_table


def revision(connection: Connection) -> int:
    """How many changes there have been."""
    number: int = connection.execute(select(state.c.revision)).scalar_one()
    return number


def require_model(connection: Connection, model: str) -> None:
    """Raises ModelNotFound, naming the models there are."""
    known = connection.scalars(select(models.c.name).order_by(models.c.name)).all()
    if model not in known:
        there = f"There are: {', '.join(known)}." if known else "There are none yet; `rm-server register` makes one."
        raise ModelNotFound(f"There is no model {model!r}. {there}")


def version_numbers(connection: Connection, model: str) -> frozenset[int]:
    """The versions that a model has."""
    return frozenset(connection.scalars(select(versions.c.version).where(versions.c.model == model)))


def require_version(connection: Connection, model: str, version: int) -> Row[Any]:
    """The version's row. Raises ModelNotFound, or VersionNotFound naming the versions there are."""
    row = connection.execute(
        select(versions).where(versions.c.model == model, versions.c.version == version)
    ).one_or_none()
    if row is not None:
        return row
    require_model(connection, model)
    known = sorted(version_numbers(connection, model))
    there = f"There are: {', '.join(map(str, known))}." if known else "It has no versions now."
    raise VersionNotFound(f"{model!r} has no version {version}. {there}")


def label_version(connection: Connection, model: str, label: str) -> int | None:
    """What a label names."""
    return connection.scalar(select(labels.c.version).where(labels.c.model == model, labels.c.label == label))


def require_label(connection: Connection, model: str, label: str) -> int:
    """What a label names. Raises ModelNotFound, or LabelNotFound naming the labels there are."""
    version = label_version(connection, model, label)
    if version is not None:
        return version
    require_model(connection, model)
    known = connection.scalars(select(labels.c.label).where(labels.c.model == model).order_by(labels.c.label)).all()
    there = f"There are: {', '.join(known)}." if known else "It has no labels."
    raise LabelNotFound(f"{model!r} has no label {label!r}. {there}")


def splits_by_model(connection: Connection) -> dict[str, Split]:
    """All splits, by model."""
    arms: dict[str, list[Arm]] = {}
    for row in connection.execute(select(split_arms).order_by(split_arms.c.model, split_arms.c.position)):
        ramp = tuple(RampPoint(time_s, weight) for time_s, weight in json.loads(row.ramp_json))
        arms.setdefault(row.model, []).append(Arm(row.arm, row.version, row.weight, ramp))
    return {
        row.model: Split(row.model, tuple(arms.get(row.model, ())), row.salt, row.update_time)
        for row in connection.execute(select(splits).order_by(splits.c.model))
    }


def pinned_versions(connection: Connection) -> dict[tuple[str, str], int]:
    """All pins: the version, by model and run."""
    rows = connection.execute(select(pins).order_by(pins.c.model, pins.c.run))
    return {(row.model, row.run): row.version for row in rows}


def shadows(connection: Connection) -> dict[VersionKey, Shadow]:
    """The shadows, by model and version."""
    rows = connection.execute(select(shadow_table).order_by(shadow_table.c.model, shadow_table.c.version))
    return {(row.model, row.version): Shadow(row.model, row.version, row.share, row.create_time) for row in rows}


def version_record(row: Row[Any]) -> VersionRecord:
    """A row of `versions` as the record that the catalog hands out."""
    calibration = None
    if row.calibration_digest is not None:
        calibration = CalibrationRecord(row.calibration_digest, row.calibration_gain, row.calibration_bias)
    return VersionRecord(
        model=row.model,
        version=row.version,
        digest=row.digest,
        kind=row.kind,
        create_time=row.create_time,
        created_by=row.created_by,
        comment=row.comment,
        max_tokens=row.max_tokens,
        calibration=calibration,
        golden_json=row.golden_json,
    )


def history_record(row: Row[Any]) -> HistoryRecord:
    """A row of `history` as the record that the catalog hands out."""
    return HistoryRecord(
        time=row.time,
        actor=row.actor,
        action=row.action,
        model=row.model,
        version=row.version,
        detail=row.detail,
        comment=row.comment,
        revision=row.revision,
        label=row.label,
        previous_version=row.previous_version,
    )


def serving_profiles_by_version(connection: Connection) -> dict[tuple[VersionKey, str], ServingProfile]:
    """All serving profiles, by version and kind of device."""
    profiles = (ServingProfile(**row._mapping) for row in connection.execute(select(serving_profiles)))
    return {((profile.model, profile.version), profile.device): profile for profile in profiles}
