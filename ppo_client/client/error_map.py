"""Which of our errors stands for a failed call's status, or for the reason that the contract gives: two tables."""

from __future__ import annotations

import os
from collections.abc import Iterable

import grpc
from google.protobuf.message import DecodeError
from rm_api.v1 import errors_pb2

from ppo_client.client import errors
from ppo_client.client.errors import RewardClientError

ERROR_METADATA_KEY = "rm-error-bin"
"""Trailing metadata of every failed call: the serialised rm_api.v1.Error."""

PUSHBACK_METADATA_KEY = "grpc-retry-pushback-ms"
"""Trailing metadata of gRPC's retry design (A6); a proxy may send it where our server's own hint is missing."""

BY_REASON: dict[str, type[RewardClientError]] = {
    "MALFORMED_REQUEST": errors.MalformedRequest,
    "INVALID_ARGUMENT": errors.InvalidRequest,
    "INVALID_SELECTOR": errors.InvalidSelector,
    "EMPTY_ITEM": errors.EmptyItem,
    "INVALID_TOKEN_IDS": errors.InvalidTokenIds,
    "ITEM_TOO_LONG": errors.ItemTooLong,
    "UNSUPPORTED_CONTENT": errors.UnsupportedContent,
    "REQUEST_TOO_LARGE": errors.RequestTooLarge,
    "UNAUTHENTICATED": errors.Unauthenticated,
    "PERMISSION_DENIED": errors.PermissionDenied,
    "MODEL_NOT_FOUND": errors.ModelNotFound,
    "VERSION_NOT_FOUND": errors.VersionNotFound,
    "LABEL_NOT_FOUND": errors.LabelNotFound,
    "VERSION_NOT_LOADED": errors.VersionNotLoaded,
    "NO_DEFAULT_VERSION": errors.NoDefaultVersion,
    "RUN_NOT_FOUND": errors.RunNotFound,
    "QUEUE_FULL": errors.QueueFull,
    "RATE_LIMITED": errors.RateLimited,
    "DRAINING": errors.Draining,
    "DEADLINE_EXCEEDED": errors.DeadlineExceeded,
    "CANCELLED": errors.Cancelled,
    "WORKER_FAILED": errors.WorkerFailed,
    "OUT_OF_MEMORY": errors.OutOfMemory,
    "CATALOG_UNAVAILABLE": errors.CatalogUnavailable,
    "NON_FINITE_SCORE": errors.NonFiniteScore,
    "ARTIFACT_UNREADABLE": errors.ArtifactUnreadable,
    "DIGEST_MISMATCH": errors.DigestMismatch,
    "WEIGHTS_MISMATCH": errors.WeightsMismatch,
    "GOLDEN_MISMATCH": errors.GoldenMismatch,
    "CONSTANT_OUTPUT": errors.ConstantOutput,
    "UNSUPPORTED_ARTIFACT": errors.UnsupportedArtifact,
    "VERSION_IN_USE": errors.VersionInUse,
    "ALREADY_EXISTS": errors.AlreadyExists,
    "VERSION_CHANGED": errors.VersionChanged,
    "PROMOTION_REFUSED": errors.PromotionRefused,
    "NOT_CALIBRATED": errors.NotCalibrated,
    "STORAGE_FULL": errors.StorageFull,
    "INTERNAL": errors.ServerDefect,
}
"""Name of a value of rm_api.v1.ErrorReason, without its prefix, to our class."""

_Code = grpc.StatusCode

_BY_STATUS: dict[grpc.StatusCode, tuple[type[RewardClientError], str]] = {
    _Code.UNAVAILABLE: (
        errors.ServerUnreachable,
        "is the server running, are host and port right, does it speak TLS as this client does (RM_TLS_CA), or want a "
        "certificate of its callers (RM_TLS_CERT, RM_TLS_KEY)?",
    ),
    _Code.CANCELLED: (errors.Cancelled, "the server or a proxy gave the call up"),
    _Code.DEADLINE_EXCEEDED: (errors.DeadlineExceeded, "give a longer timeout_s, or smaller calls"),
    _Code.UNAUTHENTICATED: (errors.Unauthenticated, "pass token= or set RM_TOKEN"),
    _Code.PERMISSION_DENIED: (errors.PermissionDenied, "use a token that may do this"),
    _Code.UNIMPLEMENTED: (
        errors.NotARewardServer,
        "no reward service of this contract (rm_api.v1) at this address; is the port the one of `rm-server serve "
        "--listen`, and the server no older than this client?",
    ),
    _Code.RESOURCE_EXHAUSTED: (errors.Unavailable, "the server or a proxy limits the calls under way"),
    _Code.INVALID_ARGUMENT: (errors.InvalidRequest, "the request was refused"),
    _Code.OUT_OF_RANGE: (errors.InvalidRequest, "the request was refused"),
    _Code.NOT_FOUND: (errors.NotFound, "there is nothing of that name"),
    _Code.ALREADY_EXISTS: (errors.AlreadyExists, "there is something of that name"),
    _Code.FAILED_PRECONDITION: (errors.Refused, "not as things stand"),
    _Code.ABORTED: (errors.Refused, "not as things stand"),
}
"""For calls that failed below the server's own code, so that no reason came: the class, and what to look at."""


_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
"""gRPC asks other machines through the first that is set."""


def from_error(error: errors_pb2.Error) -> RewardClientError | None:
    """Our error for the contract's; None where a newer server gave a reason that is not known here."""
    try:
        name = errors_pb2.ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_")
    except ValueError:
        return None
    if name not in BY_REASON:
        return None
    return BY_REASON[name](error.message, retry_after_s=error.retry_after_seconds or None)


def from_item(error: errors_pb2.Error) -> RewardClientError:
    """Our error for an item's; a reason that is not known here is a ServerDefect."""
    return from_error(error) or errors.ServerDefect(f"{error.message} (reason {error.reason}, unknown to this client)")


def from_status(
    code: grpc.StatusCode, details: str, trailing_metadata: Iterable[tuple[str, str | bytes]]
) -> RewardClientError:
    """Our error for a failed call: by the reason that it brought, else by its status."""
    metadata = dict(trailing_metadata)
    if isinstance(raw := metadata.get(ERROR_METADATA_KEY), bytes):
        try:
            given = from_error(errors_pb2.Error.FromString(raw))
        except DecodeError:
            given = None  # a foreign or damaged entry says nothing; the status still does
        if given is not None:
            return given
    if code is _Code.RESOURCE_EXHAUSTED and "larger than max" in details:
        # gRPC itself refuses: `Received message larger than max (6000000 vs. 4194304)`, before any handler ran.
        return errors.RequestTooLarge(
            f"{details}: send fewer or shorter completions in one request (max_request_bytes=), or raise the limit of "
            "the side that refused"
        )
    if code is _Code.UNAVAILABLE and "http1.x server" in details:
        # gRPC's own words: `Trying to connect an http1.x server (HTTP status 400)`.
        return errors.ServerUnreachable(
            f"{code.name}: {details}; this is an HTTP port: give the one of `rm-server serve --listen`, not of --http"
        )
    cls, advice = _BY_STATUS.get(code, (errors.ServerDefect, "see the server's log"))
    if cls is errors.ServerUnreachable and (proxy := next(filter(os.environ.get, _PROXY_VARIABLES), None)):
        advice += f" {proxy} is set, so gRPC asks other machines through it, but for those that no_proxy names"
    return cls(f"{code.name}: {details or 'no details'}; {advice}", retry_after_s=_pushback_s(metadata))


def _pushback_s(metadata: dict[str, str | bytes]) -> float | None:
    try:
        pushback_ms = int(metadata[PUSHBACK_METADATA_KEY])
    except (KeyError, ValueError):
        return None
    return pushback_ms / 1000 if pushback_ms > 0 else None
