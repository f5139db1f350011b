"""What can go wrong, by name. Nothing here knows of gRPC or HTTP: `api/error_map.py` gives each its status.

RmError
├── InvalidRequest            the request is wrong; repeating it cannot help
│   ├── MalformedRequest
│   ├── InvalidSelector
│   ├── EmptyItem
│   ├── InvalidTokenIds
│   ├── ItemTooLong
│   ├── UnsupportedContent
│   └── RequestTooLarge
├── NotFound                  the named thing is not there
│   ├── ModelNotFound
│   ├── VersionNotFound
│   ├── LabelNotFound
│   ├── VersionNotLoaded
│   ├── NoDefaultVersion
│   └── RunNotFound
├── Unavailable               not now; the same call may work later or elsewhere
│   ├── QueueFull
│   ├── RateLimited
│   ├── Draining
│   ├── WorkerFailed
│   ├── OutOfMemory
│   └── CatalogUnavailable
├── DeadlineExceeded
├── Cancelled
├── BrokenVersion             the version is refused, or gave what is no score
│   ├── NonFiniteScore
│   ├── ArtifactUnreadable
│   ├── DigestMismatch
│   ├── WeightsMismatch
│   ├── GoldenMismatch
│   ├── ConstantOutput
│   └── UnsupportedArtifact
├── Refused                   the change is not allowed as things stand
│   ├── VersionInUse
│   ├── AlreadyExists
│   ├── VersionChanged
│   ├── PromotionRefused
│   ├── NotCalibrated
│   └── StorageFull
├── Unauthenticated
├── PermissionDenied
└── InternalError
"""

from __future__ import annotations

import re
from typing import TypeGuard

_OTHER_REASONS = {"InvalidRequest": "invalid_argument", "InternalError": "internal"}


class RmError(Exception):
    """A failure with a message for people: what came, what was expected, what to do.

    ``retry_after_s`` says when the same call may work; None where repeating it cannot help or nobody knows.
    """

    retry_after_s: float | None = None

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s

    @property
    def reason(self) -> str:
        """The contract's reason in lower case, as a label of metrics and a word of logs: ``queue_full``."""
        name = type(self).__name__
        return _OTHER_REASONS.get(name) or re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()

    def __reduce__(self) -> tuple[object, ...]:
        """Keeps the hint when the error crosses from a worker process."""
        return (_rebuild, (type(self), self.message, self.retry_after_s))


def passes(error: RmError | None) -> TypeGuard[Unavailable]:
    """Whether it is over by itself after a while, as its hint says."""
    return isinstance(error, Unavailable) and error.retry_after_s is not None


def _rebuild(cls: type[RmError], message: str, retry_after_s: float | None) -> RmError:
    return cls(message, retry_after_s=retry_after_s)


class InvalidRequest(RmError):
    """A value in the request makes no sense."""


class MalformedRequest(InvalidRequest):
    """The message could not be parsed."""


class InvalidSelector(InvalidRequest):
    """The selector is not ``name``, ``name@3`` or ``name@label``."""


class EmptyItem(InvalidRequest):
    """The item has no completion, or no prompt where its template needs one."""


class InvalidTokenIds(InvalidRequest):
    """Ids outside the vocabulary."""


class ItemTooLong(InvalidRequest):
    """Longer than ``max_tokens`` where the rule is to refuse."""


class UnsupportedContent(InvalidRequest):
    """A kind of content that the version cannot score."""


class RequestTooLarge(InvalidRequest):
    """More items or bytes than one call may carry."""


class NotFound(RmError):
    """The named thing is not there."""


class ModelNotFound(NotFound):
    """No such model in the catalog."""


class VersionNotFound(NotFound):
    """The model has no version of that number."""


class LabelNotFound(NotFound):
    """The model has no such label."""


class VersionNotLoaded(NotFound):
    """In the catalog, not in memory here."""


class NoDefaultVersion(NotFound):
    """A bare name, and nothing says which version it means."""


class RunNotFound(NotFound):
    """No such run or lease."""


class Unavailable(RmError):
    """The server cannot now; the same call may work later, or elsewhere."""


class QueueFull(Unavailable):
    """Too much work waits already."""


class RateLimited(Unavailable):
    """The token's own limit is reached."""


class Draining(Unavailable):
    """The server, or the version, is finishing its last work."""


class WorkerFailed(Unavailable):
    """A worker process died and the repeated attempt failed, too."""


class OutOfMemory(Unavailable):
    """The device has not enough memory for this version or item."""


class CatalogUnavailable(Unavailable):
    """The catalog's database, or the home or artifact store that it is in, cannot be used now."""


class DeadlineExceeded(RmError):
    """The caller's deadline passed first."""


class Cancelled(RmError):
    """The caller went away first."""


class BrokenVersion(RmError):
    """The version is refused, or gave what is no score."""


class NonFiniteScore(BrokenVersion):
    """NaN or an infinity came out."""


class ArtifactUnreadable(BrokenVersion):
    """A file is missing, truncated or not what its name says."""


class DigestMismatch(BrokenVersion):
    """The content is not what the digest says."""


class WeightsMismatch(BrokenVersion):
    """Weights are missing (the head, most often) or are not the architecture's."""


class GoldenMismatch(BrokenVersion):
    """The golden examples do not get their recorded scores."""


class ConstantOutput(BrokenVersion):
    """Different texts (trial items of a load, golden texts at registration) all get the same score."""


class UnsupportedArtifact(BrokenVersion):
    """An architecture, kind or option that this server cannot host."""


class Refused(RmError):
    """The change is not allowed as things stand."""


class VersionInUse(Refused):
    """A label, split, composite or lease needs the version."""


class AlreadyExists(Refused):
    """Something of that name exists with other content."""


class VersionChanged(Refused):
    """The selector gives another version than the caller expects."""


class PromotionRefused(Refused):
    """The new version is worse beyond chance, or has no evaluation."""


class NotCalibrated(Refused):
    """Calibrated scores of a version that has no calibration."""


class StorageFull(Refused):
    """No room on disk."""


class Unauthenticated(RmError):
    """No token, or one that is not known or has expired."""


class PermissionDenied(RmError):
    """The token is known and may not do this."""


class InternalError(RmError):
    """A defect of the server."""
