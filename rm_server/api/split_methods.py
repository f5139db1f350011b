"""ExperimentService's splits and pins."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import UTC, datetime

from rm_api.v1 import experiments_pb2

from rm_server.api.calls import Call
from rm_server.api.describe import timestamp
from rm_server.engine.versions import VersionManager
from rm_server.errors import InvalidRequest
from rm_server.registry.catalog import Catalog
from rm_server.registry.names import check_run
from rm_server.registry.records import Arm, RampPoint, Split
from rm_server.registry.splits import count_runs
from rm_server.scoring.split import shares


class SplitMethods:
    """Mixed into ExperimentService."""

    def __init__(self, versions: VersionManager, catalog: Catalog) -> None:
        self._versions = versions
        self._catalog = catalog

    async def SetSplit(self, request: experiments_pb2.SetSplitRequest, call: Call) -> experiments_pb2.SetSplitResponse:
        """Divides the model's runs."""
        await self._versions.refresh()  # another process may have registered an arm's version a moment ago
        split = await self._versions.set_split(
            _split(request.split), load=request.load, actor=call.actor, comment=request.comment
        )
        return experiments_pb2.SetSplitResponse(split=_message(split, await self._num_runs()))

    async def ListSplits(
        self, request: experiments_pb2.ListSplitsRequest, call: Call
    ) -> experiments_pb2.ListSplitsResponse:
        """The splits with the weights of this moment, and the pins."""
        await self._versions.refresh()
        snapshot = self._versions.snapshot
        snapshot.require_known(request.model)
        num_runs = await self._num_runs()
        return experiments_pb2.ListSplitsResponse(
            splits=[
                _message(split, num_runs)
                for model, split in sorted(snapshot.splits.items())
                if request.model in ("", model)
            ],
            pins=[
                experiments_pb2.Pin(run=run, model=model, version=version)
                for (model, run), version in sorted(snapshot.pins.items())
                if request.model in ("", model)
            ],
        )

    async def RemoveSplit(
        self, request: experiments_pb2.RemoveSplitRequest, call: Call
    ) -> experiments_pb2.RemoveSplitResponse:
        """Ends the model's split."""
        await self._versions.remove_split(request.model, call.actor, request.comment)
        return experiments_pb2.RemoveSplitResponse()

    async def SetPin(self, request: experiments_pb2.SetPinRequest, call: Call) -> experiments_pb2.SetPinResponse:
        """Gives a run a version, when it asks next."""
        pin = request.pin
        check_run(pin.run)
        call.run = pin.run
        await self._versions.refresh()
        await self._versions.set_pin(pin.run, (pin.model, pin.version), call.actor, request.comment)
        return experiments_pb2.SetPinResponse()

    async def RemovePin(
        self, request: experiments_pb2.RemovePinRequest, call: Call
    ) -> experiments_pb2.RemovePinResponse:
        """Takes a pin away."""
        check_run(request.run)
        call.run = request.run
        await self._versions.remove_pin(request.run, request.model, call.actor, request.comment)
        return experiments_pb2.RemovePinResponse()

    async def _num_runs(self) -> Mapping[tuple[str, str], int]:
        return await asyncio.to_thread(count_runs, self._catalog)


def _split(message: experiments_pb2.Split) -> Split:
    return Split(
        model=message.model,
        arms=tuple(
            Arm(
                name=arm.name,
                version=arm.version,
                weight=arm.weight,
                ramp=tuple(_ramp_point(arm.name, point) for point in arm.ramp),
            )
            for arm in message.arms
        ),
        salt=message.salt,
        update_time=datetime.now(UTC),
    )


def _ramp_point(arm: str, point: experiments_pb2.RampPoint) -> RampPoint:
    if not point.HasField("time"):
        raise InvalidRequest(
            f"A point of the ramp of arm {arm!r} has no time; the time when the weight holds is needed."
        )
    try:
        return RampPoint(point.time.ToDatetime(UTC).timestamp(), point.weight)
    except (OverflowError, ValueError):
        raise InvalidRequest(
            f"A point of the ramp of arm {arm!r} is {point.time.seconds} s after 1970; a time before the year 10000 "
            "was expected."
        ) from None


def _message(split: Split, num_runs: Mapping[tuple[str, str], int]) -> experiments_pb2.Split:
    return experiments_pb2.Split(
        model=split.model,
        arms=[
            experiments_pb2.Arm(
                name=arm.name,
                version=arm.version,
                weight=arm.weight,
                ramp=[
                    experiments_pb2.RampPoint(
                        time=timestamp(datetime.fromtimestamp(point.time_s, UTC)), weight=point.weight
                    )
                    for point in arm.ramp
                ],
            )
            for arm in split.arms
        ],
        salt=split.salt,
        update_time=timestamp(split.update_time),
        shares=shares(split, time.time()),
        num_runs={arm.name: num_runs.get((split.model, arm.name), 0) for arm in split.arms},
    )
