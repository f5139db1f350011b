"""A reward service whose scores can be computed by hand, and that misbehaves on request.

The score of a text is its length, of token ids their sum, of messages the number of characters in them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from rm_api.v1 import (
    errors_pb2,
    experiments_pb2,
    experiments_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    scoring_pb2,
    scoring_pb2_grpc,
)

DIGESTS = {version: f"{version:x}" * 64 for version in range(1, 10)}


def score_of(content: scoring_pb2.Content) -> float:
    match content.WhichOneof("content"):
        case "text":
            return float(len(content.text))
        case "token_ids":
            return float(sum(content.token_ids.ids))
        case "messages":
            return float(sum(len(message.content) for message in content.messages.messages))
    return 0.0


@dataclass
class Seen:
    """One request as it came."""

    request: Any
    metadata: dict[str, str | bytes]
    remaining_s: float | None


Behaviour = Callable[["FakeServer", scoring_pb2.ScoreRequest, grpc.ServicerContext], scoring_pb2.ScoreResponse | None]
"""Answers a request in its own way; None: answer as usual."""


@dataclass
class FakeServer:
    version: int = 1
    model: str = "length"
    label: str = ""
    port: int = 0
    max_message_bytes: int | None = None
    credentials: grpc.ServerCredentials | None = None
    seen: list[Seen] = field(default_factory=list)
    script: deque[Behaviour] = field(default_factory=deque)
    always: Behaviour | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    watched: threading.Event = field(default_factory=threading.Event)
    on_watch: Callable[[], object] | None = None

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=16)
        options: list[tuple[str, int]] = [("grpc.so_reuseport", 0)]
        if self.max_message_bytes is not None:
            options.append(("grpc.max_receive_message_length", self.max_message_bytes))
        self._server = grpc.server(self._pool, options=options)
        scoring_pb2_grpc.add_ScoringServiceServicer_to_server(_Scoring(self), self._server)
        experiments_pb2_grpc.add_ExperimentServiceServicer_to_server(_Experiments(self), self._server)
        models_pb2_grpc.add_ModelServiceServicer_to_server(_Models(self), self._server)
        address = f"127.0.0.1:{self.port}"
        if self.credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, self.credentials)
        self._server.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[scoring_pb2.ScoreRequest]:
        return [seen.request for seen in self.seen if isinstance(seen.request, scoring_pb2.ScoreRequest)]

    def will(self, *behaviours: Behaviour) -> Self:
        """The next scoring requests are treated so, one behaviour each."""
        self.script.extend(behaviours)
        return self

    def stop(self) -> None:
        self._server.stop(None).wait()
        self._pool.shutdown()

    def note(self, request: Any, context: grpc.ServicerContext) -> None:
        metadata = {entry.key: entry.value for entry in context.invocation_metadata()}
        self.seen.append(Seen(request, metadata, context.time_remaining()))

    def answer(self, request: scoring_pb2.ScoreRequest) -> scoring_pb2.ScoreResponse:
        """As a good server would."""
        _, _, place = request.model.partition("@")
        version = int(place) if place.isdigit() else self.version
        response = scoring_pb2.ScoreResponse(
            model=self.model,
            version=version,
            digest=DIGESTS[version],
            label=self.label if not place.isdigit() else "",
            transform=scoring_pb2.TRANSFORM_RULE,
            timings=scoring_pb2.Timings(total_seconds=0.001),
        )
        gain = 1.0
        if request.options.calibrated:
            gain = 10.0
            response.calibration.CopyFrom(scoring_pb2.Calibration(digest="c" * 64, gain=gain, bias=0.0))
        for group in request.groups:
            for completion in group.completions:
                value = gain * score_of(completion)
                response.results.add(score=scoring_pb2.Score(value=value), num_tokens=int(score_of(completion)))
        return response


# Behaviours


def fail(
    status: grpc.StatusCode,
    reason: str | None = None,
    message: str = "as told",
    retry_after_s: float = 0.0,
    metadata: tuple[tuple[str, str | bytes], ...] = (),
) -> Behaviour:
    """The call fails, with the contract's error if a reason is given."""

    def behave(server: FakeServer, request: Any, context: grpc.ServicerContext) -> None:
        if reason is not None:
            error = errors_pb2.Error(
                reason=f"ERROR_REASON_{reason}", message=message, retry_after_seconds=retry_after_s
            )
            context.set_trailing_metadata((("rm-error-bin", error.SerializeToString()), *metadata))
        else:
            context.set_trailing_metadata(metadata)
        context.abort(status, message)

    return behave


def fail_items(*indices: int, reason: str, message: str = "as told") -> Behaviour:
    """These items, by their place in the request, have an error instead of a score."""

    def behave(server: FakeServer, request: Any, context: grpc.ServicerContext) -> scoring_pb2.ScoreResponse:
        response = server.answer(request)
        for index in indices:
            response.results[index].error.CopyFrom(errors_pb2.Error(reason=f"ERROR_REASON_{reason}", message=message))
        return response

    return behave


def change(edit: Callable[[scoring_pb2.ScoreResponse], object]) -> Behaviour:
    """The good answer, edited."""

    def behave(server: FakeServer, request: Any, context: grpc.ServicerContext) -> scoring_pb2.ScoreResponse:
        response = server.answer(request)
        edit(response)
        return response

    return behave


def as_version(version: int) -> Behaviour:
    """The answer comes from this version, whatever was asked."""

    def edit(response: scoring_pb2.ScoreResponse) -> None:
        response.version, response.digest = version, DIGESTS[version]

    return change(edit)


def wait_for(event: threading.Event) -> Behaviour:
    """Answers once the event is set."""

    def behave(server: FakeServer, request: Any, context: grpc.ServicerContext) -> None:
        assert event.wait(30)

    return behave


def wait_until_cancelled(server: FakeServer, request: Any, context: grpc.ServicerContext) -> None:
    """Never answers; sets the server's `cancelled` when the call ends, for whatever reason."""
    ended = threading.Event()
    if not context.add_callback(ended.set):
        ended.set()
    assert ended.wait(30)
    server.cancelled.set()


def usual(server: FakeServer, request: Any, context: grpc.ServicerContext) -> None:
    """As a good server would."""


class _Scoring(scoring_pb2_grpc.ScoringServiceServicer):
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def Score(self, request: scoring_pb2.ScoreRequest, context: grpc.ServicerContext) -> scoring_pb2.ScoreResponse:
        server = self._server
        server.note(request, context)
        try:
            behave = server.script.popleft()
        except IndexError:
            behave = server.always or usual
        return behave(server, request, context) or server.answer(request)


class _Experiments(experiments_pb2_grpc.ExperimentServiceServicer):
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def _lease(self, run: str, model: str) -> experiments_pb2.Lease:
        lease = experiments_pb2.Lease(run=run, model=model, version=1, digest=DIGESTS[1], arm="b")
        lease.expire_time.FromSeconds(1_700_000_000)
        return lease

    def RegisterRun(self, request: Any, context: grpc.ServicerContext) -> experiments_pb2.RegisterRunResponse:
        self._server.note(request, context)
        return experiments_pb2.RegisterRunResponse(lease=self._lease(request.run, request.model), resumed=request.move)

    def RenewLease(self, request: Any, context: grpc.ServicerContext) -> experiments_pb2.RenewLeaseResponse:
        self._server.note(request, context)
        if request.model == "gone":
            fail(grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND")(self._server, request, context)
        return experiments_pb2.RenewLeaseResponse(lease=self._lease(request.run, request.model))

    def EndRun(self, request: Any, context: grpc.ServicerContext) -> experiments_pb2.EndRunResponse:
        self._server.note(request, context)
        return experiments_pb2.EndRunResponse()


class _Models(models_pb2_grpc.ModelServiceServicer):
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def _model(self) -> models_pb2.Model:
        version = models_pb2.Version(
            model="length",
            version=1,
            digest=DIGESTS[1],
            kind="rules",
            state=models_pb2.VERSION_STATE_FAILED,
            error=errors_pb2.Error(reason=errors_pb2.ERROR_REASON_DIGEST_MISMATCH, message="not the same"),
            labels=["stable"],
        )
        return models_pb2.Model(name="length", versions=[version], labels={"stable": 1})

    def ListModels(self, request: Any, context: grpc.ServicerContext) -> models_pb2.ListModelsResponse:
        self._server.note(request, context)
        return models_pb2.ListModelsResponse(models=[self._model()])

    def GetVersion(self, request: Any, context: grpc.ServicerContext) -> models_pb2.GetVersionResponse:
        self._server.note(request, context)
        version = self._model().versions[0]
        version.evaluations.add(name="held_out", report_json='{"accuracy": 0.75}')
        return models_pb2.GetVersionResponse(version=version)

    def WatchModels(self, request: Any, context: grpc.ServicerContext) -> Iterator[models_pb2.WatchModelsResponse]:
        self._server.note(request, context)
        if request.model == "unknown":
            fail(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")(self._server, request, context)
        if self._server.watched.is_set():
            # Before anything is sent: who leaves at once is never waited for below, and a callback comes too late then.
            context.add_callback(self._server.cancelled.set)
        yield models_pb2.WatchModelsResponse(change=models_pb2.WatchModelsResponse.CHANGE_INITIAL, model=self._model())
        if self._server.on_watch is not None:
            self._server.on_watch()
        elif self._server.watched.is_set():
            yield models_pb2.WatchModelsResponse(
                change=models_pb2.WatchModelsResponse.CHANGE_LABELS, model=self._model()
            )
            wait_until_cancelled(self._server, request, context)
        self._server.watched.set()  # the first watch is ended by the server
