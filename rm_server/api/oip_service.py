"""The Open Inference Protocol: what KServe's and Triton's clients ask of a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from importlib.metadata import version as version_of_package

from rm_api.oip import inference_pb2

from rm_server.api import oip_shapes
from rm_server.api.calls import Call, Calls
from rm_server.api.error_map import outcome_of, short_message
from rm_server.api.health import Readiness
from rm_server.api.rpc import Send, Unparsed
from rm_server.engine.versions import VersionManager
from rm_server.errors import NotFound, RmError
from rm_server.scoring.routing import resolve
from rm_server.scoring.scorer import Scorer
from rm_server.scoring.selector import parse

SERVER_NAME = "rm-server"


class OipService:
    """``max_stream_requests``: requests under way on one stream; it is not read further until one is answered."""

    def __init__(
        self,
        scorer: Scorer,
        versions: VersionManager,
        readiness: Readiness,
        calls: Calls,
        max_stream_requests: int,
    ) -> None:
        self._scorer = scorer
        self._versions = versions
        self._readiness = readiness
        self._calls = calls
        self._max_stream_requests = max_stream_requests

    async def ServerLive(
        self, request: inference_pb2.ServerLiveRequest, call: Call
    ) -> inference_pb2.ServerLiveResponse:
        """It answers, so it lives."""
        return inference_pb2.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: inference_pb2.ServerReadyRequest, call: Call
    ) -> inference_pb2.ServerReadyResponse:
        """As /readyz says."""
        return inference_pb2.ServerReadyResponse(ready=self._readiness.is_ready)

    async def ModelReady(
        self, request: inference_pb2.ModelReadyRequest, call: Call
    ) -> inference_pb2.ModelReadyResponse:
        """Whether a call with no lease would be scored; false where nothing has the name."""
        selector = oip_shapes.selector_text(request.name, request.version)
        try:
            is_ready = self._readiness.can_score(selector)
        except NotFound:
            is_ready = False
        return inference_pb2.ModelReadyResponse(ready=is_ready)

    async def ServerMetadata(
        self, request: inference_pb2.ServerMetadataRequest, call: Call
    ) -> inference_pb2.ServerMetadataResponse:
        """Name and version of the package."""
        return inference_pb2.ServerMetadataResponse(name=SERVER_NAME, version=version_of_package("rm-service"))

    async def ModelMetadata(
        self, request: inference_pb2.ModelMetadataRequest, call: Call
    ) -> inference_pb2.ModelMetadataResponse:
        """What the version takes and gives that the name means where there is no lease."""
        snapshot = self._versions.snapshot
        selector = parse(oip_shapes.selector_text(request.name, request.version))
        record = snapshot.versions[resolve(selector, snapshot, None).key]
        loaded = [
            version
            for version in snapshot.versions_of(record.model)
            if self._versions.state_of((record.model, version)).state == "READY"
        ]
        return oip_shapes.metadata_response(record, loaded)

    async def ModelInfer(
        self, request: inference_pb2.ModelInferRequest, call: Call
    ) -> inference_pb2.ModelInferResponse:
        """Scores all items, or fails."""
        call.request_id = request.id or call.request_id
        self._scorer.check_size(oip_shapes.num_items(request))
        score_call = oip_shapes.score_call(request, call.request_id)
        call.run = score_call.run
        deadline = _earlier(call.deadline, oip_shapes.timeout_s(request))
        answer = await self._scorer.score(score_call, deadline, call.routed)
        call.scored(answer)
        return oip_shapes.infer_response(request, answer)

    async def ModelStreamInfer(
        self, requests: AsyncIterator[inference_pb2.ModelInferRequest | Unparsed], call: Call, send: Send
    ) -> None:
        """Scores requests as they come, and answers them in that order: Triton's clients may send no ids."""
        slots = asyncio.Semaphore(self._max_stream_requests)

        async def answer(
            request: inference_pb2.ModelInferRequest | Unparsed, previous: asyncio.Task[None] | None
        ) -> None:
            try:
                with self._calls.busy():
                    response = await self._stream_response(request, call)
                    if previous is not None:
                        await previous
                    await send(response)
            finally:
                slots.release()

        last: asyncio.Task[None] | None = None
        async with asyncio.TaskGroup() as answers:
            async for request in requests:
                await slots.acquire()
                last = answers.create_task(answer(request, last))

    async def _stream_response(
        self, request: inference_pb2.ModelInferRequest | Unparsed, stream: Call
    ) -> inference_pb2.ModelStreamInferResponse:
        call = Call(
            "ModelStreamInfer", actor=stream.actor, deadline=stream.deadline, trace_context=stream.trace_context
        )
        try:
            with self._calls.under_way(call):
                if isinstance(request, Unparsed):
                    raise request.error()
                with stream.permit.admit(request):
                    return oip_shapes.stream_response(request, await self.ModelInfer(request, call))
        except RmError as error:
            reason = outcome_of(error).reason.removeprefix("ERROR_REASON_")
            return inference_pb2.ModelStreamInferResponse(
                error_message=f"{reason}: {short_message(error)}",
                infer_response=inference_pb2.ModelInferResponse(id="" if isinstance(request, Unparsed) else request.id),
            )


def _earlier(deadline: float | None, timeout_s: float | None) -> float | None:
    """The deadline on the event loop's clock, which the caller's timeout may bring nearer."""
    if timeout_s is None:
        return deadline
    own = asyncio.get_running_loop().time() + timeout_s
    return own if deadline is None else min(own, deadline)
