"""What can go wrong with a scoring call, by name. Where a score could not be had, one of these is raised.

RewardClientError
├── InvalidRequest (ValueError)    the request is wrong; repeating it cannot help. Raised before sending where possible
│   ├── MalformedRequest
│   ├── InvalidSelector
│   ├── EmptyItem
│   ├── InvalidTokenIds
│   ├── ItemTooLong
│   ├── UnsupportedContent
│   └── RequestTooLarge
├── NotFound (LookupError)         the named thing is not there
│   ├── ModelNotFound
│   ├── VersionNotFound
│   ├── LabelNotFound
│   ├── VersionNotLoaded
│   ├── NoDefaultVersion
│   └── RunNotFound
├── Unavailable                    not now; the same call may work later. The client has tried again until here
│   ├── ServerUnreachable          nobody answered: down, restarting, wrong address, wrong TLS
│   ├── QueueFull
│   ├── RateLimited
│   ├── Draining
│   ├── WorkerFailed
│   ├── OutOfMemory
│   ├── CatalogUnavailable
│   ├── Cancelled                  somebody on the way gave the call up; not the caller
│   └── ItemsUnavailable           see ItemsFailed
├── DeadlineExceeded (TimeoutError)   `timeout_s` passed, retries and waiting included
├── BrokenVersion                  the version is refused, or gave what is no score
│   ├── NonFiniteScore
│   ├── ArtifactUnreadable
│   ├── DigestMismatch
│   ├── WeightsMismatch
│   ├── GoldenMismatch
│   ├── ConstantOutput
│   └── UnsupportedArtifact
├── Refused                        the change is not allowed as things stand
│   ├── VersionInUse
│   ├── AlreadyExists
│   ├── VersionChanged             another version than the one that was expected
│   │   └── VersionChangedDuringCall   the parts of one call came from several versions
│   ├── PromotionRefused
│   ├── NotCalibrated              calibrated scores of a version without calibration
│   └── StorageFull
├── Unauthenticated
├── PermissionDenied
├── ServerDefect                   a defect of the server; its log has the trace
│   └── NotARewardServer           something else answers at this address
├── InvalidReply                   an answer that cannot be trusted: wrong count, not finite, another digest, …
├── ItemsFailed                    some items have no score; `errors` says why, `scores` has the others
│   └── ItemsUnavailable           all of them may work later
└── ClientMisuse                   how the client was made or used
    ├── InvalidSettings (ValueError)
    ├── InvalidFile (ValueError)
    ├── ClientClosed
    └── ForkedAfterUse             used before the process forked, and again in the child

To wait for a service that is away, catch `Unavailable` and `DeadlineExceeded`. `future.cancel()` is no error of ours:
the future then raises `CancelledError`, as every future does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ppo_client.client.scores import Calibration


class RewardClientError(Exception):
    """A failure with a message for people: what came, what was expected, what to do.

    ``retry_after_s``: when the server said that the call may work; None where it said nothing.
    ``target``: the server that answered, or did not. ``num_attempts``: how often the call was sent. ``timeout_s``: the
    limit that passed; None where another thing failed. ``request_id``: what the server's log calls it.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.target: str | None = None
        self.num_attempts = 0
        self.timeout_s: float | None = None
        self.request_id: str | None = None

    def __str__(self) -> str:
        notes = []
        if self.target:
            notes.append(f"from {self.target}")
        spent = [f"{self.num_attempts} attempts"] if self.num_attempts > 1 else []
        if self.timeout_s is not None:
            spent.append(f"{self.timeout_s:g} s")
        if spent:
            notes.append(f"after {' in '.join(spent)}")
        if self.request_id:
            notes.append(f"request {self.request_id}")
        return f"{self.message} [{', '.join(notes)}]" if notes else self.message


class InvalidRequest(RewardClientError, ValueError):
    """A value in the request makes no sense."""


class MalformedRequest(InvalidRequest):
    """It cannot be put into a message, or be read from one: a text that is not valid Unicode, say."""


class InvalidSelector(InvalidRequest):
    """The selector is not ``name``, ``name@3`` or ``name@label``."""


class EmptyItem(InvalidRequest):
    """The item has no completion, or no prompt where its template needs one."""


class InvalidTokenIds(InvalidRequest):
    """Not integers from 0 to 2³² - 1, or outside the version's vocabulary."""


class ItemTooLong(InvalidRequest):
    """Longer than ``max_tokens`` where the rule is to refuse."""


class UnsupportedContent(InvalidRequest):
    """Content that cannot be sent, or that the version cannot score."""


class RequestTooLarge(InvalidRequest):
    """More items or bytes than one message may carry."""


class NotFound(RewardClientError, LookupError):
    """The named thing is not there."""


class ModelNotFound(NotFound):
    """No such model in the catalog."""


class VersionNotFound(NotFound):
    """The model has no version of that number."""


class LabelNotFound(NotFound):
    """The model has no such label."""


class VersionNotLoaded(NotFound):
    """In the catalog, not in the server's memory."""


class NoDefaultVersion(NotFound):
    """A bare name, and nothing says which version it means."""


class RunNotFound(NotFound):
    """No such run or lease."""


class Unavailable(RewardClientError):
    """The server cannot now; the same call may work later, or elsewhere."""


class ServerUnreachable(Unavailable):
    """Nobody answered."""


class QueueFull(Unavailable):
    """Too much work waits already."""


class RateLimited(Unavailable):
    """The token's own limit of calls or items is reached."""


class Draining(Unavailable):
    """The server, or the version, is finishing its last work."""


class WorkerFailed(Unavailable):
    """A worker process of the server died, and the repeated attempt failed, too."""


class OutOfMemory(Unavailable):
    """The server's device has not enough memory for this version or item."""


class CatalogUnavailable(Unavailable):
    """The server cannot use its catalog, or its home or artifact store, now."""


class Cancelled(Unavailable):
    """The call was given up on its way, not by this client."""


class DeadlineExceeded(RewardClientError, TimeoutError):
    """``timeout_s`` passed first."""


class BrokenVersion(RewardClientError):
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
    """Different texts all get the same score."""


class UnsupportedArtifact(BrokenVersion):
    """An architecture, kind or option that the server cannot host."""


class Refused(RewardClientError):
    """The change is not allowed as things stand."""


class VersionInUse(Refused):
    """A label, split, composite or lease needs the version."""


class AlreadyExists(Refused):
    """Something of that name exists with other content."""


class VersionChanged(Refused):
    """The selector gives another version than the one that was expected."""


class VersionChangedDuringCall(VersionChanged):
    """The parts of a large call came from several versions, and asking for one of them again did not help."""


class PromotionRefused(Refused):
    """The new version is worse beyond chance, or has no evaluation."""


class NotCalibrated(Refused):
    """Calibrated scores were asked of a version that has no calibration; ask for raw ones."""


class StorageFull(Refused):
    """No room on the server's disk."""


class Unauthenticated(RewardClientError):
    """No token, or one that the server does not know or that has expired."""


class PermissionDenied(RewardClientError):
    """The server knows the token, and it may not do this."""


class ServerDefect(RewardClientError):
    """A defect of the server."""


class NotARewardServer(ServerDefect):
    """What answers does not offer the reward service."""


class InvalidReply(RewardClientError):
    """The reply breaks the contract; nothing of it was used."""


class ItemsFailed(RewardClientError):
    """Some completions of the call have no score.

    ``errors``: why, by the completion's index in the call. ``scores``: the others' scores, by index, and ``truncated``
    whether they are of cut texts; all of them come from ``version`` with ``digest``, on the model's common scale where
    there is a ``calibration``.
    """

    def __init__(
        self,
        message: str,
        *,
        errors: Mapping[int, RewardClientError] | None = None,
        scores: Mapping[int, float] | None = None,
        truncated: Mapping[int, bool] | None = None,
        model: str = "",
        version: int = 0,
        digest: str = "",
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__(message)
        self.errors = dict(errors or {})
        self.scores = dict(scores or {})
        self.truncated = dict(truncated or {})
        self.model = model
        self.version = version
        self.digest = digest
        self.calibration = calibration

    @property
    def passing(self) -> dict[int, RewardClientError]:
        """Those of ``errors`` that may pass: such a completion may get a score later."""
        return {
            index: error for index, error in self.errors.items() if isinstance(error, (Unavailable, DeadlineExceeded))
        }


class ItemsUnavailable(ItemsFailed, Unavailable):
    """Every completion that has no score may get one later."""


class ClientMisuse(RewardClientError):
    """The client was made or used in a way that cannot work."""


class InvalidSettings(ClientMisuse, ValueError):
    """A setting makes no sense, or does not go with another."""


class InvalidFile(ClientMisuse, ValueError):
    """A file cannot be read, or is not what it should be."""


class ClientClosed(ClientMisuse):
    """The client was closed."""


class ForkedAfterUse(ClientMisuse):
    """gRPC does not survive a fork, and this process had used it before it forked."""
