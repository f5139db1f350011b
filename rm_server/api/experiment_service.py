"""ExperimentService: training runs, and the leases by which each keeps its version; splits are mixed in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp
from rm_api.v1 import experiments_pb2

from rm_server.api.calls import Call
from rm_server.api.convert import calibration
from rm_server.api.describe import timestamp
from rm_server.api.split_methods import SplitMethods
from rm_server.engine.versions import VersionManager
from rm_server.registry.catalog import Catalog
from rm_server.registry.run_records import Lease
from rm_server.scoring.run_status import RunStatus
from rm_server.scoring.runs import Runs

_log = logging.getLogger(__name__)


class ExperimentService(SplitMethods):
    """Runs and leases over gRPC."""

    def __init__(self, runs: Runs, versions: VersionManager, catalog: Catalog) -> None:
        super().__init__(versions, catalog)
        self._runs = runs

    async def RegisterRun(
        self, request: experiments_pb2.RegisterRunRequest, call: Call
    ) -> experiments_pb2.RegisterRunResponse:
        """Gives the run a lease on a version."""
        call.run = request.run
        lease, is_resumed = await self._runs.register(
            request.run,
            request.model,
            lease_s=request.lease_seconds,
            expected_digest=request.expected_digest,
            move=request.move,
        )
        call.key = lease.key
        if request.move and not is_resumed:
            _note("a run moved", call, lease.model)
        return experiments_pb2.RegisterRunResponse(lease=self._lease(lease), resumed=is_resumed)

    async def RenewLease(
        self, request: experiments_pb2.RenewLeaseRequest, call: Call
    ) -> experiments_pb2.RenewLeaseResponse:
        """A sign of life."""
        call.run = request.run
        lease = await self._runs.renew(request.run, request.model)
        call.key = lease.key
        return experiments_pb2.RenewLeaseResponse(lease=self._lease(lease))

    async def EndRun(self, request: experiments_pb2.EndRunRequest, call: Call) -> experiments_pb2.EndRunResponse:
        """Ends the run's leases."""
        call.run = request.run
        await self._runs.end(request.run, request.model or None)
        _note("a run was ended", call, request.model)
        return experiments_pb2.EndRunResponse()

    async def ListRuns(self, request: experiments_pb2.ListRunsRequest, call: Call) -> experiments_pb2.ListRunsResponse:
        """What is known of the runs."""
        self._versions.snapshot.require_known(request.model)
        statuses = await self._runs.statuses(request.model or None, request.run or None)
        return await asyncio.to_thread(_runs_response, statuses)

    def _lease(self, lease: Lease) -> experiments_pb2.Lease:
        record = self._versions.snapshot.versions.get(lease.key)
        return experiments_pb2.Lease(
            run=lease.run,
            model=lease.model,
            version=lease.version,
            digest=lease.digest,
            arm=lease.arm or "",
            calibration=calibration(record.calibration) if record is not None else None,
            expire_time=_epoch(lease.expires_at),
        )


def _note(event: str, call: Call, model: str) -> None:
    """Whoever wonders why a run has another version finds here who did that."""
    _log.info(
        event, extra={"run": call.run, "model": model or None, "actor": call.actor, "request_id": call.request_id}
    )


def _runs_response(statuses: Sequence[RunStatus]) -> experiments_pb2.ListRunsResponse:
    return experiments_pb2.ListRunsResponse(runs=[_run_status(status) for status in statuses])


def _run_status(status: RunStatus) -> experiments_pb2.RunStatus:
    return experiments_pb2.RunStatus(
        run=status.run,
        model=status.model,
        version=status.version,
        arm=status.arm or "",
        items=status.items,
        tokens=status.tokens,
        items_per_second=status.items_per_s,
        tokens_per_second=status.tokens_per_s,
        version_items=status.version_items,
        score_mean=status.score_mean,
        score_std=status.score_std,
        last_seen_time=_epoch(status.last_seen),
        lease_version=status.lease_version or 0,
        lease_expire_time=_epoch(status.lease_expires_at) if status.lease_expires_at is not None else None,
    )


def _epoch(seconds: float) -> Timestamp:
    return timestamp(datetime.fromtimestamp(seconds, UTC))
