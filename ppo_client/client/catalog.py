"""What the server says of models, versions and leases, as plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rm_api.v1 import experiments_pb2, models_pb2

from ppo_client.client.error_map import from_item
from ppo_client.client.errors import RewardClientError
from ppo_client.client.scores import Calibration
from ppo_client.client.wire import read_calibration, word


@dataclass(frozen=True, slots=True)
class Lease:
    """A run's hold on a version: it stays loaded and unchanged for the run until ``expire_time``.

    ``arm``: of the split that chose the version; empty where none did. ``is_resumed``: the run had it before.
    """

    run: str
    model: str
    version: int
    digest: str
    arm: str
    calibration: Calibration | None
    expire_time: datetime
    is_resumed: bool


@dataclass(frozen=True, slots=True)
class RunStatus:
    """What the service knows of a run on a model.

    ``version``: the one that scored it last. ``version_items``, ``score_mean``, ``score_std``: number, mean and
    standard deviation of its raw scores by that version, which its rewards may be normalised by; the service itself
    does not. ``items``, ``tokens``: all that were scored; the rates are weighted towards the last minute. ``arm``: of
    a split; empty: none. ``lease_version``: what its lease holds, for the bare name. That and ``lease_expire_time``
    None: it has no lease.
    """

    run: str
    model: str
    version: int
    arm: str
    items: int
    tokens: int
    items_per_s: float
    tokens_per_s: float
    version_items: int
    score_mean: float
    score_std: float
    last_seen_time: datetime
    lease_version: int | None
    lease_expire_time: datetime | None


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run trained with when it reported an outcome. ``arm``: of a split; empty: no split gave it its version."""

    version: int
    arm: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A filed evaluation of a version. ``report``: as `rm-server evaluate --json` prints it."""

    name: str
    report: Mapping[str, Any]
    create_time: datetime


@dataclass(frozen=True, slots=True)
class Version:
    """One immutable version of a model, and where it is on the server that answered.

    ``state``: ``registered``, ``loading``, ``ready``, ``draining``, ``paged_out`` (the next request brings it back) or
    ``failed`` (then ``error`` says why).
    ``max_tokens``: of an item; 0: no limit. ``memory_bytes``: on that server; 0: not loaded. ``precision``: empty: not
    loaded, or without weights. ``evaluations``: only in the answer of `get_version`.
    """

    model: str
    version: int
    digest: str
    kind: str
    state: str
    error: RewardClientError | None
    labels: tuple[str, ...]
    create_time: datetime
    created_by: str
    comment: str
    max_tokens: int
    memory_bytes: int
    precision: str
    calibration: Calibration | None
    evaluations: tuple[Evaluation, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """A model with its versions, by number, and its labels with the versions that they name."""

    name: str
    versions: tuple[Version, ...]
    labels: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ModelChange:
    """Something about a model changed. ``change``: ``initial``, ``versions``, ``state`` or ``labels``.

    ``initial`` tells the state at the beginning; it comes again when the connection had to be made anew.
    """

    change: str
    model: Model


def read_lease(lease: experiments_pb2.Lease, *, is_resumed: bool) -> Lease:
    """The contract's lease as ours."""
    return Lease(
        run=lease.run,
        model=lease.model,
        version=lease.version,
        digest=lease.digest,
        arm=lease.arm,
        calibration=read_calibration(lease),
        expire_time=lease.expire_time.ToDatetime(UTC),
        is_resumed=is_resumed,
    )


def read_run_status(status: experiments_pb2.RunStatus) -> RunStatus:
    """The contract's status of a run as ours."""
    has_lease = status.HasField("lease_expire_time")
    return RunStatus(
        run=status.run,
        model=status.model,
        version=status.version,
        arm=status.arm,
        items=status.items,
        tokens=status.tokens,
        items_per_s=status.items_per_second,
        tokens_per_s=status.tokens_per_second,
        version_items=status.version_items,
        score_mean=status.score_mean,
        score_std=status.score_std,
        last_seen_time=status.last_seen_time.ToDatetime(UTC),
        lease_version=status.lease_version or None,  # a server one release older does not say
        lease_expire_time=status.lease_expire_time.ToDatetime(UTC) if has_lease else None,
    )


def read_version(version: models_pb2.Version) -> Version:
    """The contract's version as ours."""
    return Version(
        model=version.model,
        version=version.version,
        digest=version.digest,
        kind=version.kind,
        state=word(models_pb2.VersionState, version.state, "VERSION_STATE_"),
        error=from_item(version.error) if version.HasField("error") else None,
        labels=tuple(version.labels),
        create_time=version.create_time.ToDatetime(UTC),
        created_by=version.created_by,
        comment=version.comment,
        max_tokens=version.max_tokens,
        memory_bytes=version.memory_bytes,
        precision=version.precision,
        calibration=read_calibration(version),
        evaluations=tuple(
            Evaluation(each.name, json.loads(each.report_json), each.create_time.ToDatetime(UTC))
            for each in version.evaluations
        ),
    )


def read_model(model: models_pb2.Model) -> Model:
    """The contract's model as ours."""
    return Model(model.name, tuple(map(read_version, model.versions)), dict(model.labels))


def read_change(change: models_pb2.WatchModelsResponse) -> ModelChange:
    """The contract's change as ours."""
    return ModelChange(word(models_pb2.WatchModelsResponse.Change, change.change, "CHANGE_"), read_model(change.model))
