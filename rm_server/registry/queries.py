"""Questions to the catalog's tables within a caller's transaction, with answers that say what there is instead."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, select

from rm_server.errors import LabelNotFound, ModelNotFound, VersionNotFound
from rm_server.registry.records import CalibrationRecord, HistoryRecord, VersionRecord
from rm_server.registry.tables import labels, models, state, versions


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
