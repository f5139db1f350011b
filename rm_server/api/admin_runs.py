"""What commands ask a server of runs, splits and pins; mixed into Admin."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from rm_api.v1 import experiments_pb2

from rm_server.registry.records import Arm

Row = dict[str, Any]


class RunActions:
    """Needs what Admin has: the stubs, and the way to call them."""

    _experiments: Any
    _call: Callable[..., Any]

    def runs(self, model: str = "") -> list[Row]:
        """The training runs that the servers on this catalog know, last seen first."""
        response = self._call(self._experiments.ListRuns, experiments_pb2.ListRunsRequest(model=model))
        return [_run(message) for message in response.runs]

    def end_run(self, run: str, model: str = "") -> None:
        """Ends the run's lease on a model, or all of its leases."""
        self._call(self._experiments.EndRun, experiments_pb2.EndRunRequest(run=run, model=model))

    def splits(self, model: str = "") -> Row:
        """``splits`` with the shares of this moment, and ``pins``."""
        response = self._call(self._experiments.ListSplits, experiments_pb2.ListSplitsRequest(model=model))
        pins = [{"model": pin.model, "run": pin.run, "version": pin.version} for pin in response.pins]
        return {"splits": [_split(split) for split in response.splits], "pins": pins}

    def set_split(self, model: str, arms: list[Arm], *, salt: str, load: bool, comment: str = "") -> Row:
        """Divides a model's runs."""
        split = experiments_pb2.Split(model=model, salt=salt)
        for arm in arms:
            message = split.arms.add(name=arm.name, version=arm.version, weight=arm.weight)
            for point in arm.ramp:
                message.ramp.add(weight=point.weight).time.FromDatetime(datetime.fromtimestamp(point.time_s, UTC))
        request = experiments_pb2.SetSplitRequest(split=split, load=load, comment=comment)
        return _split(self._call(self._experiments.SetSplit, request, is_limited=False).split)

    def remove_split(self, model: str, *, comment: str = "") -> None:
        """Ends a model's split."""
        self._call(self._experiments.RemoveSplit, experiments_pb2.RemoveSplitRequest(model=model, comment=comment))

    def set_pin(self, model: str, run: str, version: int, *, comment: str = "") -> None:
        """Gives one run a version when it asks next."""
        pin = experiments_pb2.Pin(run=run, model=model, version=version)
        self._call(self._experiments.SetPin, experiments_pb2.SetPinRequest(pin=pin, comment=comment))

    def remove_pin(self, model: str, run: str, *, comment: str = "") -> None:
        """Takes a pin away."""
        request = experiments_pb2.RemovePinRequest(run=run, model=model, comment=comment)
        self._call(self._experiments.RemovePin, request)


def _run(message: experiments_pb2.RunStatus) -> Row:
    return {
        "run": message.run,
        "model": message.model,
        "version": message.version,
        "arm": message.arm or None,
        "items": message.items,
        "tokens": message.tokens,
        "items_per_second": message.items_per_second,
        "tokens_per_second": message.tokens_per_second,
        "version_items": message.version_items,
        "score_mean": message.score_mean,
        "score_std": message.score_std,
        "last_seen_time": _time(message.last_seen_time),
        "lease_version": message.lease_version or None,
        "lease_expire_time": _time(message.lease_expire_time) if message.HasField("lease_expire_time") else None,
    }


def _split(message: experiments_pb2.Split) -> Row:
    return {
        "model": message.model,
        "salt": message.salt,
        "update_time": _time(message.update_time),
        "arms": [
            {
                "arm": arm.name,
                "version": arm.version,
                "weight": arm.weight,
                "ramp": [{"time": _time(point.time), "weight": point.weight} for point in arm.ramp],
                "share": message.shares[arm.name],
                "num_runs": message.num_runs[arm.name],
            }
            for arm in message.arms
        ],
    }


def _time(message: Timestamp) -> str:
    return message.ToJsonString()
