"""Who can be scored by now: grpc.health.v1 per model and version, and the readiness of the whole server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass

from grpc_health.v1 import health_pb2

from rm_server.api.calls import Call, Calls
from rm_server.api.rpc import Send
from rm_server.engine.lifecycle import SERVING as SERVING_STATES
from rm_server.engine.versions import VersionManager
from rm_server.errors import InvalidSelector, LabelNotFound, ModelNotFound, RmError, VersionNotFound
from rm_server.registry.records import VersionKey
from rm_server.scoring.routing import DEFAULT_LABEL, resolve
from rm_server.scoring.selector import parse

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@dataclass(frozen=True, slots=True)
class Missing:
    """A version that should be loaded here and is not. ``error``: of what FAILED."""

    key: VersionKey
    state: str
    error: RmError | None


class Readiness:
    """Whether this server should get calls.

    It is ready once nothing that is wanted has yet to be loaded, as long as everything that a label names serves. A
    version that is loaded later is loaded beside the others, so nobody has to stay away meanwhile; a broken one that no
    label names keeps nobody away.
    """

    def __init__(self, versions: VersionManager, calls: Calls, is_down: Callable[[], bool]) -> None:
        """``is_down``: whether nobody computes, and nobody could be started to."""
        self._versions = versions
        self._calls = calls
        self._is_down = is_down
        self._has_started = False
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Wakes those who watch: a version changed its state, or the server opened or drains."""
        self._changed.set()
        self._changed = asyncio.Event()

    def next_change(self) -> asyncio.Event:
        """Is set at the next change. Ask for it before looking, and no change is missed."""
        return self._changed

    async def follow(self) -> None:
        """Wakes those who watch whenever a version changes, until it is cancelled."""
        async for _ in self._versions.subscribe():
            self.changed()

    def missing(self) -> list[Missing]:
        """What is wanted and cannot be scored with, by model and version."""
        missing = []
        for key in sorted(self._versions.wanted):
            status = self._versions.state_of(key)
            if status.state not in SERVING_STATES:
                missing.append(Missing(key, status.state, status.error))
        return missing

    @property
    def is_ready(self) -> bool:
        """True when callers are welcome."""
        missing = self.missing()
        if self._calls.is_open and not self._has_started:
            self._has_started = all(part.state == "FAILED" for part in missing)
        labelled = {(model, version) for (model, _), version in self._versions.snapshot.labels.items()}
        is_whole = not any(part.state == "FAILED" and part.key in labelled for part in missing)
        return self._calls.is_open and self._has_started and is_whole and not self._is_down()

    @property
    def has_opened(self) -> bool:
        """False while the server starts; it may not know yet what there is."""
        return self._calls.open_time is not None

    def can_score(self, selector: str) -> bool:
        """Whether a call with this selector and no lease would be scored, whatever arm of a split its run would get.

        Raises RmError where it names nothing.
        """
        wanted, snapshot = parse(selector), self._versions.snapshot
        split = snapshot.splits.get(wanted.model) if wanted.is_bare else None
        keys = {(wanted.model, arm.version) for arm in split.arms} if split is not None else set()
        if split is None or (wanted.model, DEFAULT_LABEL) in snapshot.labels:
            keys.add(resolve(wanted, snapshot, None).key)
        return (
            self._calls.is_open
            and not self._is_down()
            and all(self._versions.state_of(key).state in SERVING_STATES for key in keys)
        )

    @property
    def is_catalog_reachable(self) -> bool:
        """False while the catalog cannot be read. Nobody has to stay away for that: what is loaded goes on serving."""
        return self._versions.catalog_error is None


class HealthService:
    """grpc.health.v1. The name "" and the names of services are the server; others are selectors.

    ``helpfulness`` serves when a call with the bare name and no lease would be scored, ``helpfulness@3`` when that
    version is loaded.
    """

    def __init__(self, versions: VersionManager, readiness: Readiness, services: Collection[str]) -> None:
        self._versions = versions
        self._readiness = readiness
        self._services = {"", *services}

    async def Check(self, request: health_pb2.HealthCheckRequest, call: Call) -> health_pb2.HealthCheckResponse:
        """The present status. Raises ModelNotFound where nothing has the name."""
        status = self.status_of(request.service)
        if status == SERVICE_UNKNOWN:
            raise ModelNotFound(f"No model, version or label is named {request.service!r}.")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: health_pb2.HealthCheckRequest, call: Call, send: Send) -> None:
        """The present status, and each new one."""
        last = None
        while True:
            change = self._readiness.next_change()
            status = self.status_of(request.service)
            if status != last:
                await send(health_pb2.HealthCheckResponse(status=status))
                last = status
            await change.wait()

    async def List(self, request: health_pb2.HealthListRequest, call: Call) -> health_pb2.HealthListResponse:
        """The status of everything that has a name."""
        snapshot = self._versions.snapshot
        names = [*sorted(self._services), *snapshot.models()]
        names += [f"{model}@{version}" for model, version in sorted(snapshot.versions)]
        names += [f"{model}@{label}" for model, label in sorted(snapshot.labels)]
        return health_pb2.HealthListResponse(
            statuses={name: health_pb2.HealthCheckResponse(status=self.status_of(name)) for name in names}
        )

    def status_of(self, name: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        """SERVING where a call with that selector would be scored; SERVICE_UNKNOWN where nothing has the name.

        While the server starts, NOT_SERVING whatever the name is.
        """
        if name in self._services:
            return SERVING if self._readiness.is_ready else NOT_SERVING
        try:
            return SERVING if self._readiness.can_score(name) else NOT_SERVING
        except (InvalidSelector, ModelNotFound, VersionNotFound, LabelNotFound):
            return SERVICE_UNKNOWN if self._readiness.has_opened else NOT_SERVING
        except RmError:
            return NOT_SERVING
