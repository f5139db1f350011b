"""Each of our errors has one gRPC status, one HTTP status and one reason in the contract: this table."""

from __future__ import annotations

from typing import NamedTuple

import grpc
from rm_api.v1 import errors_pb2

from rm_server import errors

ERROR_METADATA_KEY = "rm-error-bin"
"""Trailing metadata of every failed call: the serialised rm_api.v1.Error."""

PUSHBACK_METADATA_KEY = "grpc-retry-pushback-ms"
"""Trailing metadata of gRPC's retry design (A6): when the client may try again."""

MAX_MESSAGE_BYTES = 1500

_Status = grpc.StatusCode


class Outcome(NamedTuple):
    """How callers are told of an error; ``reason`` is the name of a value of rm_api.v1.ErrorReason."""

    status: grpc.StatusCode
    http_status: int
    reason: str


def _outcome(status: grpc.StatusCode, http_status: int, reason: str) -> Outcome:
    return Outcome(status, http_status, f"ERROR_REASON_{reason}")


# 422: the request is well formed and repeating it cannot help, so that HTTP clients do not retry it. What may work
# later is 503 or 504, a full queue too: verl's client repeats 5xx, and ends the training on any 4xx. Beyond a token's
# own limits it is 429, as everywhere: no balancer shall take that for a sick server. verl's client shows no token.
TABLE: dict[type[errors.RmError], Outcome] = {
    errors.InvalidRequest: _outcome(_Status.INVALID_ARGUMENT, 400, "INVALID_ARGUMENT"),
    errors.MalformedRequest: _outcome(_Status.INVALID_ARGUMENT, 400, "MALFORMED_REQUEST"),
    errors.InvalidSelector: _outcome(_Status.INVALID_ARGUMENT, 400, "INVALID_SELECTOR"),
    errors.EmptyItem: _outcome(_Status.INVALID_ARGUMENT, 422, "EMPTY_ITEM"),
    errors.InvalidTokenIds: _outcome(_Status.INVALID_ARGUMENT, 422, "INVALID_TOKEN_IDS"),
    errors.ItemTooLong: _outcome(_Status.INVALID_ARGUMENT, 422, "ITEM_TOO_LONG"),
    errors.UnsupportedContent: _outcome(_Status.INVALID_ARGUMENT, 422, "UNSUPPORTED_CONTENT"),
    errors.RequestTooLarge: _outcome(_Status.INVALID_ARGUMENT, 413, "REQUEST_TOO_LARGE"),
    errors.ModelNotFound: _outcome(_Status.NOT_FOUND, 404, "MODEL_NOT_FOUND"),
    errors.VersionNotFound: _outcome(_Status.NOT_FOUND, 404, "VERSION_NOT_FOUND"),
    errors.LabelNotFound: _outcome(_Status.NOT_FOUND, 404, "LABEL_NOT_FOUND"),
    errors.VersionNotLoaded: _outcome(_Status.FAILED_PRECONDITION, 409, "VERSION_NOT_LOADED"),
    errors.NoDefaultVersion: _outcome(_Status.FAILED_PRECONDITION, 409, "NO_DEFAULT_VERSION"),
    errors.RunNotFound: _outcome(_Status.NOT_FOUND, 404, "RUN_NOT_FOUND"),
    errors.QueueFull: _outcome(_Status.RESOURCE_EXHAUSTED, 503, "QUEUE_FULL"),
    errors.RateLimited: _outcome(_Status.RESOURCE_EXHAUSTED, 429, "RATE_LIMITED"),
    errors.Draining: _outcome(_Status.UNAVAILABLE, 503, "DRAINING"),
    errors.WorkerFailed: _outcome(_Status.UNAVAILABLE, 503, "WORKER_FAILED"),
    errors.OutOfMemory: _outcome(_Status.RESOURCE_EXHAUSTED, 503, "OUT_OF_MEMORY"),
    errors.CatalogUnavailable: _outcome(_Status.UNAVAILABLE, 503, "CATALOG_UNAVAILABLE"),
    errors.DeadlineExceeded: _outcome(_Status.DEADLINE_EXCEEDED, 504, "DEADLINE_EXCEEDED"),
    errors.Cancelled: _outcome(_Status.CANCELLED, 499, "CANCELLED"),
    errors.NonFiniteScore: _outcome(_Status.FAILED_PRECONDITION, 422, "NON_FINITE_SCORE"),
    errors.ArtifactUnreadable: _outcome(_Status.FAILED_PRECONDITION, 422, "ARTIFACT_UNREADABLE"),
    errors.DigestMismatch: _outcome(_Status.FAILED_PRECONDITION, 422, "DIGEST_MISMATCH"),
    errors.WeightsMismatch: _outcome(_Status.FAILED_PRECONDITION, 422, "WEIGHTS_MISMATCH"),
    errors.GoldenMismatch: _outcome(_Status.FAILED_PRECONDITION, 422, "GOLDEN_MISMATCH"),
    errors.ConstantOutput: _outcome(_Status.FAILED_PRECONDITION, 422, "CONSTANT_OUTPUT"),
    errors.UnsupportedArtifact: _outcome(_Status.FAILED_PRECONDITION, 422, "UNSUPPORTED_ARTIFACT"),
    errors.VersionInUse: _outcome(_Status.FAILED_PRECONDITION, 409, "VERSION_IN_USE"),
    errors.AlreadyExists: _outcome(_Status.ALREADY_EXISTS, 409, "ALREADY_EXISTS"),
    errors.VersionChanged: _outcome(_Status.FAILED_PRECONDITION, 409, "VERSION_CHANGED"),
    errors.PromotionRefused: _outcome(_Status.FAILED_PRECONDITION, 409, "PROMOTION_REFUSED"),
    errors.NotCalibrated: _outcome(_Status.FAILED_PRECONDITION, 409, "NOT_CALIBRATED"),
    errors.StorageFull: _outcome(_Status.RESOURCE_EXHAUSTED, 507, "STORAGE_FULL"),
    errors.Unauthenticated: _outcome(_Status.UNAUTHENTICATED, 401, "UNAUTHENTICATED"),
    errors.PermissionDenied: _outcome(_Status.PERMISSION_DENIED, 403, "PERMISSION_DENIED"),
    errors.InternalError: _outcome(_Status.INTERNAL, 500, "INTERNAL"),
}

FAMILIES = frozenset({errors.RmError, errors.NotFound, errors.Unavailable, errors.BrokenVersion, errors.Refused})
"""Classes that only group others: what is raised is one of their members."""


def outcome_of(error: errors.RmError) -> Outcome:
    """The table's entry for the error's class, or for the nearest class above it; a mere family is a defect."""
    for cls in type(error).__mro__:
        if cls in TABLE:
            return TABLE[cls]
    return TABLE[errors.InternalError]


def short_message(error: errors.RmError) -> str:
    """The error's text, cut where it would not fit: gRPC sends it twice, percent-encoded, in 8 KiB of trailers."""
    encoded = error.message.encode("utf-8", "replace")
    if len(encoded) <= MAX_MESSAGE_BYTES:
        return encoded.decode()
    return encoded[:MAX_MESSAGE_BYTES].decode("utf-8", "ignore") + " …"


def error_message(error: errors.RmError) -> errors_pb2.Error:
    """The error as the contract's message."""
    return errors_pb2.Error(
        reason=outcome_of(error).reason, message=short_message(error), retry_after_seconds=error.retry_after_s or 0.0
    )


def trailing_metadata(error: errors.RmError) -> tuple[tuple[str, str | bytes], ...]:
    """What goes with the status of a failed call."""
    metadata: tuple[tuple[str, str | bytes], ...] = ((ERROR_METADATA_KEY, error_message(error).SerializeToString()),)
    if error.retry_after_s is not None:
        metadata += ((PUSHBACK_METADATA_KEY, str(max(0, round(error.retry_after_s * 1000)))),)
    return metadata
