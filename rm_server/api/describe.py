"""Models, versions, runs and history as the contract's messages."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp
from rm_api.v1 import models_pb2

from rm_server.api.convert import calibration
from rm_server.api.error_map import error_message
from rm_server.engine.versions import VersionManager
from rm_server.registry.records import EvaluationRecord, HistoryRecord, VersionRecord

STATES = {
    "REGISTERED": models_pb2.VERSION_STATE_REGISTERED,
    "LOADING": models_pb2.VERSION_STATE_LOADING,
    "READY": models_pb2.VERSION_STATE_READY,
    "DRAINING": models_pb2.VERSION_STATE_DRAINING,
    "FAILED": models_pb2.VERSION_STATE_FAILED,
    "PAGED_OUT": models_pb2.VERSION_STATE_PAGED_OUT,
}


def timestamp(time: datetime) -> Timestamp:
    """A time with a zone as protobuf has it."""
    message = Timestamp()
    message.FromDatetime(time)
    return message


def version_message(
    versions: VersionManager, record: VersionRecord, evaluations: Iterable[EvaluationRecord] = ()
) -> models_pb2.Version:
    """A version with its state on this server; the present snapshot may not have it yet."""
    snapshot, status = versions.snapshot, versions.state_of(record.key)
    return models_pb2.Version(
        model=record.model,
        version=record.version,
        digest=record.digest,
        kind=record.kind,
        state=STATES[status.state],
        error=error_message(status.error) if status.error is not None else None,
        labels=[label for label, version in snapshot.labels_of(record.model).items() if version == record.version],
        create_time=timestamp(record.create_time),
        created_by=record.created_by,
        comment=record.comment,
        memory_bytes=status.memory_bytes,
        max_tokens=record.max_tokens,
        precision=status.precision,
        calibration=calibration(record.calibration),
        evaluations=[
            models_pb2.Evaluation(
                name=evaluation.name,
                report_json=evaluation.report_json,
                create_time=timestamp(evaluation.create_time),
            )
            for evaluation in evaluations
        ],
        parts=[f"{part}@{number}" for part, number in snapshot.parts.get(record.key, ())],
    )


def model_message(versions: VersionManager, model: str) -> models_pb2.Model:
    """A model of the present snapshot, with all its versions; a model that is gone has none."""
    snapshot = versions.snapshot
    return models_pb2.Model(
        name=model,
        versions=[version_message(versions, snapshot.versions[model, own]) for own in snapshot.versions_of(model)],
        labels=snapshot.labels_of(model),
    )


def history_message(record: HistoryRecord) -> models_pb2.HistoryEntry:
    """One change of the catalog."""
    return models_pb2.HistoryEntry(
        time=timestamp(record.time),
        actor=record.actor,
        action=record.action,
        model=record.model,
        version=record.version,
        detail=record.detail,
        comment=record.comment,
    )
