"""A call under way, whatever brought it: let in or refused, counted, timed, and every failure made an RmError."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from rm_server.api.access import Permit
from rm_server.errors import Draining, InternalError, RmError
from rm_server.metrics import OK, Metrics, VersionKey
from rm_server.scoring.scorer import ScoreAnswer, ScoreCall, Timings

logger = logging.getLogger(__name__)

HANGS_UP_EARLY_S = 0.1
"""A caller's own clock for its deadline began when it sent the call, ours when the call was here: where it is a little
quicker than ours, it has hung up because its time was over."""


def new_request_id() -> str:
    """For callers who sent none."""
    return os.urandom(8).hex()


@dataclass(slots=True)
class Call:
    """Who asks for what, and until when.

    ``deadline`` is on the event loop's clock; None: the caller waits for ever. ``key`` is set, for metrics and log, by
    whoever finds out which version answers; ``num_waiting_items`` of it have no answer yet. ``permit`` admits each
    request of a stream. ``trace_context``: what the caller sent of W3C's headers. ``timings`` are set where there were
    scores.
    """

    method: str
    actor: str
    deadline: float | None = None
    request_id: str = field(default_factory=new_request_id)
    run: str = ""
    key: VersionKey | None = None
    num_waiting_items: int = 0
    permit: Permit = field(default_factory=lambda: Permit(""))
    trace_context: tuple[tuple[str, str], ...] = ()
    timings: Timings | None = None

    def routed(self, asked: ScoreCall, key: VersionKey) -> None:
        """Notes which version is to answer: where the call fails, it fails on that one, and all its items with it."""
        self.key, self.num_waiting_items = key, asked.num_items

    def scored(self, answer: ScoreAnswer) -> None:
        """Notes which version answered, and where the time went. The scorer has counted the items."""
        self.key, self.num_waiting_items, self.timings = (answer.model, answer.version), 0, answer.timings


TRACE_HEADERS = ("traceparent", "tracestate")


def trace_context(headers: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What of W3C's trace context the caller sent; gRPC's metadata and HTTP's headers name it alike."""
    return tuple((name, str(headers[name])) for name in TRACE_HEADERS if name in headers)


class CallTracing(Protocol):
    """What is told of calls; see rm_server/api/tracing.py."""

    def call_ended(self, call: Call, reason: str, start_ns: int, end_ns: int) -> None: ...


class Calls:
    """The calls under way. Lives on one event loop; refuses work before ``open`` and after ``drain``.

    ``access_share``: the share of answered calls that leave a line in the log. Defects always do.
    ``tracing``: is told of each call that is no read; None: tracing is off.
    """

    def __init__(self, metrics: Metrics, access_share: float = 0.0, tracing: CallTracing | None = None) -> None:
        self._metrics = metrics
        self._tracing = tracing
        self._access_share = access_share
        self._num_working = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_open = False
        self._is_draining = False
        self.open_time: datetime | None = None
        """When work was first let in, in UTC."""
        self._streams: set[asyncio.Timeout] = set()
        self._are_streams_over = False

    @property
    def is_open(self) -> bool:
        """Whether work is let in."""
        return self._is_open

    @property
    def is_draining(self) -> bool:
        """True once ``drain`` was called."""
        return self._is_draining

    @contextmanager
    def under_way(self, call: Call, *, is_read: bool = False, is_probe: bool = False) -> Iterator[None]:
        """Surrounds the work of a call; raises RmError and CancelledError only.

        Reads are let in while the server drains, and do not keep it from stopping. Before it is open there is nothing
        to read yet: only a read that ``is_probe`` is let in.
        """
        started = time.perf_counter()
        late_from = _late_from(call.deadline)
        self._metrics.request_started()
        reason = OK
        try:
            if is_read:
                if not is_probe:
                    self._check_has_loaded()
                yield
            else:
                self._check_open()
                with self.busy():
                    yield
        except asyncio.CancelledError:
            reason = "cancelled" if asyncio.get_running_loop().time() < late_from else "deadline_exceeded"
            raise
        except RmError as error:
            reason = error.reason
            if isinstance(error, InternalError):
                logger.exception("defect", extra=_fields(call))
            raise
        except Exception as error:
            reason = "internal"
            logger.exception("defect", extra=_fields(call))
            raise InternalError(
                f"A defect of the server; its log has the trace under request id {call.request_id}."
            ) from error
        finally:
            seconds = time.perf_counter() - started
            self._metrics.request_finished(call.method, call.key, reason, seconds)
            if call.key is not None and call.num_waiting_items:
                self._metrics.items_finished(call.key, reason, call.num_waiting_items)
            if self._tracing is not None and not is_read:
                end_ns = time.time_ns()
                self._tracing.call_ended(call, reason, end_ns - int(seconds * 1e9), end_ns)
            if self._access_share and random.random() < self._access_share:
                logger.info("call", extra={**_fields(call), "reason": reason, "seconds": seconds})

    def open(self) -> None:
        """Lets work in from now on."""
        self._is_open = True
        self.open_time = datetime.now(UTC)

    def drain(self) -> None:
        """Refuses work from now on."""
        self._is_open, self._is_draining = False, True
        self._metrics.draining(True)

    async def finished(self, timeout_s: float) -> bool:
        """Waits until no work is under way; False when ``timeout_s`` passed first."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[None]:
        """Surrounds a streamed answer, which has no end of its own: ``end_streams`` makes it fail with Draining."""
        scope = asyncio.timeout(0 if self._are_streams_over else None)
        self._streams.add(scope)
        try:
            async with scope:
                yield
        except TimeoutError:
            if not scope.expired():
                raise
            raise Draining("This server is shutting down; call another one.") from None
        finally:
            self._streams.discard(scope)

    def end_streams(self) -> None:
        """Ends the streams that are open, and those that come now."""
        self._are_streams_over = True
        for scope in self._streams:
            scope.reschedule(asyncio.get_running_loop().time())

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Surrounds what has to be finished before the server ends, such as writing an answer to a stream."""
        self._num_working += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_working -= 1
            if self._num_working == 0:
                self._idle.set()

    def _check_open(self) -> None:
        if self._is_draining:
            raise Draining("This server is shutting down; call another one.")
        self._check_has_loaded()

    def _check_has_loaded(self) -> None:
        if not (self._is_open or self._is_draining):
            raise Draining("This server is still loading its versions; come back soon.", retry_after_s=1.0)


def _late_from(deadline: float | None) -> float:
    """From when on a caller who hangs up was not answered in time; the event loop's clock."""
    if deadline is None:
        return math.inf
    given_s = deadline - asyncio.get_running_loop().time()
    return deadline - min(HANGS_UP_EARLY_S, given_s / 10)


def _fields(call: Call) -> dict[str, object]:
    model, version = call.key or (None, None)
    return {
        "method": call.method,
        "request_id": call.request_id,
        "run": call.run or None,
        "actor": call.actor,
        "model": model,
        "version": version,
    }
