"""What the catalog hands out: immutable records, and the snapshot that routing reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from rm_server.errors import ModelNotFound

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_Scores = TypeVar("_Scores", float, "npt.NDArray[np.float64]")

VersionKey: TypeAlias = tuple[str, int]
"""(model, version)"""


def version_name(key: VersionKey) -> str:
    """As selectors name one version: ``model@version``."""
    return f"{key[0]}@{key[1]}"


@dataclass(frozen=True, slots=True)
class CalibrationRecord:
    """The map to the model's common scale: score = gain * raw + bias.

    ``digest``: SHA-256 of gain, bias and what they were computed from. ``gain`` is finite and not 0.
    """

    digest: str
    gain: float
    bias: float

    def apply(self, raw: _Scores) -> _Scores:
        """Raw scores on the common scale. Not finite where that overflows."""
        return self.gain * raw + self.bias


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One immutable version. Only ``calibration`` and ``golden_json`` may come, or change, later.

    ``create_time`` is in UTC. ``max_tokens`` 0: no limit. ``golden_json``: its golden examples and tolerances, for
    `read_manifest`; None: those in its files.
    """

    model: str
    version: int
    digest: str
    kind: str
    create_time: datetime
    created_by: str
    comment: str
    max_tokens: int
    calibration: CalibrationRecord | None = None
    golden_json: str | None = None

    @property
    def key(self) -> VersionKey:
        """(model, version)"""
        return (self.model, self.version)


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """An evaluation filed with a version: what it was computed on, the report, and when it was filed (UTC)."""

    name: str
    report_json: str
    create_time: datetime


@dataclass(frozen=True, slots=True)
class HistoryRecord:
    """One change: when (UTC), who, what, and why in their words (``comment``).

    ``version`` 0: the change concerns no single version. ``revision`` is the catalog's revision that the change made.
    ``label`` is set for changes of a label, and then ``previous_version`` is what it named before (0: nothing).
    """

    time: datetime
    actor: str
    action: str
    model: str
    version: int
    detail: str
    comment: str
    revision: int = 0
    label: str = ""
    previous_version: int = 0


@dataclass(frozen=True, slots=True)
class RampPoint:
    """A weight to come: ``time_s`` since the epoch."""

    time_s: float
    weight: float


@dataclass(frozen=True, slots=True)
class Arm:
    """A part of a split. ``ramp``: ascending in time; before its first point, ``weight`` holds."""

    name: str
    version: int
    weight: float
    ramp: tuple[RampPoint, ...] = ()


@dataclass(frozen=True, slots=True)
class Split:
    """How a model's runs are divided. ``salt``: goes into the hash of a run's id. ``update_time``: when it was set."""

    model: str
    arms: tuple[Arm, ...]
    salt: str
    update_time: datetime

    def arm(self, name: str) -> Arm | None:
        """The arm of that name."""
        return next((arm for arm in self.arms if arm.name == name), None)


@dataclass(frozen=True, slots=True)
class Shadow:
    """A version that also scores ``share`` (above 0, at most 1) of its model's calls; only to be compared."""

    model: str
    version: int
    share: float
    create_time: datetime

    @property
    def key(self) -> VersionKey:
        """(model, version)"""
        return (self.model, self.version)


@dataclass(frozen=True, slots=True)
class ServingProfile:
    """How a version is computed best on one kind of device, as measured there.

    ``device``: as `backends.device.device_kind` names it. ``precision`` is what a load takes that names none. The other
    settings are a server's own, for all versions: they say how it was started when ``tokens_per_s`` was measured.
    ``create_time`` None: not in the catalog yet.
    """

    model: str
    version: int
    device: str
    precision: str
    workers: int
    threads_per_worker: int
    max_batch_tokens: int
    tokens_per_s: float
    create_time: datetime | None = None


@dataclass(frozen=True)  # without slots, which would leave no place for what is looked up once
class Snapshot:
    """The catalog at one revision, read in one transaction. Immutable, so any thread may keep it.

    ``wanted``: the versions that a server shall have loaded; ``wanted_precision`` holds those among them for which a
    precision was asked. ``splits`` by model; ``pins``: by model and run, the version.
    ``profiles`` by version and kind of device. ``parts``: what composites are made of.
    """

    revision: int
    versions: Mapping[VersionKey, VersionRecord]
    labels: Mapping[tuple[str, str], int]
    wanted: frozenset[VersionKey]
    wanted_precision: Mapping[VersionKey, str] = field(default_factory=dict)
    splits: Mapping[str, Split] = field(default_factory=dict)
    pins: Mapping[tuple[str, str], int] = field(default_factory=dict)
    shadows: Mapping[VersionKey, Shadow] = field(default_factory=dict)
    profiles: Mapping[tuple[VersionKey, str], ServingProfile] = field(default_factory=dict)
    parts: Mapping[VersionKey, tuple[VersionKey, ...]] = field(default_factory=dict)

    def composites_of(self, key: VersionKey) -> tuple[VersionKey, ...]:
        """The composites that are made of a version."""
        return tuple(composite for composite, parts in self.parts.items() if key in parts)

    def models(self) -> tuple[str, ...]:
        """The models that have versions, sorted."""
        return tuple(sorted(self._numbers))

    def unknown(self, model: str) -> ModelNotFound:
        """What to raise for a model that has no versions."""
        return ModelNotFound(f"The catalog has no model {model!r}; it has {', '.join(self.models()) or 'none'}.")

    def require_known(self, model: str) -> None:
        """Raises ModelNotFound for a model that has no versions. Empty: all models are meant."""
        if model and not self.versions_of(model):
            raise self.unknown(model)

    def versions_of(self, model: str) -> tuple[int, ...]:
        """The numbers of a model's versions, ascending."""
        return self._numbers.get(model, ())

    def labels_of(self, model: str) -> dict[str, int]:
        """A model's labels, sorted by name, and the versions they name."""
        return dict(self._labels.get(model, {}))

    @cached_property
    def _numbers(self) -> Mapping[str, tuple[int, ...]]:
        by_model = groupby(sorted(self.versions), key=itemgetter(0))
        return {model: tuple(version for _, version in keys) for model, keys in by_model}

    @cached_property
    def _labels(self) -> Mapping[str, Mapping[str, int]]:
        labels: dict[str, dict[str, int]] = {}
        for (model, label), version in sorted(self.labels.items()):
            labels.setdefault(model, {})[label] = version
        return labels
