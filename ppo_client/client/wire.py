"""What several messages of the contract have in common, as plain values."""

from __future__ import annotations

from typing import Any

from rm_api.v1 import experiments_pb2, models_pb2, scoring_pb2

from ppo_client.client.scores import Calibration


def read_calibration(
    holder: experiments_pb2.Lease | models_pb2.Version | scoring_pb2.ScoreResponse | scoring_pb2.ExplainResponse,
) -> Calibration | None:
    """The calibration in a message; None: it has none."""
    if not holder.HasField("calibration"):
        return None
    given: scoring_pb2.Calibration = holder.calibration
    return Calibration(given.digest, given.gain, given.bias)


def word(enum: Any, value: int, prefix: str) -> str:
    """An enum's value as a word, without its prefix: ``ready``; ``unknown_9`` where the server is newer."""
    name: str = enum.Name(value) if value in enum.values() else f"unknown_{value}"
    return name.removeprefix(prefix).lower()
