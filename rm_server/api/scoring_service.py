"""ScoringService: one call, or many over a stream; a request that fails leaves its neighbours alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from rm_api.v1 import scoring_pb2

from rm_server.api.calls import Call, Calls
from rm_server.api.convert import num_completions, score_call, score_response
from rm_server.api.error_map import error_message
from rm_server.api.rpc import Send, Unparsed
from rm_server.errors import InvalidRequest, MalformedRequest, RmError
from rm_server.scoring.scorer import Scorer

_ID_FIELD = scoring_pb2.ScoreStreamRequest.DESCRIPTOR.fields_by_name["id"].number
_LENGTH_DELIMITED = 2


class ScoringService:
    """``max_stream_requests``: requests under way on one stream; it is not read further until one is answered."""

    def __init__(self, scorer: Scorer, calls: Calls, max_stream_requests: int) -> None:
        self._scorer = scorer
        self._calls = calls
        self._max_stream_requests = max_stream_requests

    async def Score(self, request: scoring_pb2.ScoreRequest, call: Call) -> scoring_pb2.ScoreResponse:
        """Scores the completions of one call."""
        call.request_id = request.request_id or call.request_id
        call.run = request.run
        self._scorer.check_size(len(request.groups), "groups")
        self._scorer.check_size(num_completions(request))
        answer = await self._scorer.score(score_call(request, call.request_id), call.deadline, call.routed)
        call.scored(answer)
        return score_response(answer)

    async def ScoreStream(
        self, requests: AsyncIterator[scoring_pb2.ScoreStreamRequest | Unparsed], call: Call, send: Send
    ) -> None:
        """Scores requests as they come and answers each as soon as it is done."""
        slots = asyncio.Semaphore(self._max_stream_requests)
        writing = asyncio.Lock()
        under_way: set[str] = set()

        async def answer(request: scoring_pb2.ScoreStreamRequest | Unparsed, request_id: str, is_known: bool) -> None:
            try:
                with self._calls.busy():
                    response = await self._stream_response(request, request_id, is_known, call)
                    async with writing:  # gRPC allows one write at a time
                        await send(response)
            finally:
                slots.release()
                if not is_known:
                    under_way.discard(request_id)

        broken: MalformedRequest | None = None
        async with asyncio.TaskGroup() as answers:
            async for request in requests:
                try:
                    request_id = _id_of(request) if isinstance(request, Unparsed) else request.id
                except MalformedRequest as error:
                    broken = error  # nobody could be answered: the stream ends, after those under way
                    break
                await slots.acquire()
                answers.create_task(answer(request, request_id, request_id in under_way))
                under_way.add(request_id)
        if broken is not None:
            raise broken

    async def _stream_response(
        self, request: scoring_pb2.ScoreStreamRequest | Unparsed, request_id: str, is_known: bool, stream: Call
    ) -> scoring_pb2.ScoreStreamResponse:
        call = Call("ScoreStream", actor=stream.actor, deadline=stream.deadline, trace_context=stream.trace_context)
        try:
            with self._calls.under_way(call):
                if isinstance(request, Unparsed):
                    raise request.error()
                if is_known:
                    raise InvalidRequest(f"A request with the id {request_id!r} is still under way on this stream.")
                with stream.permit.admit(request):
                    response = await self.Score(request.request, call)
                return scoring_pb2.ScoreStreamResponse(id=request_id, response=response)
        except RmError as error:
            return scoring_pb2.ScoreStreamResponse(id=request_id, error=error_message(error))


def _id_of(request: Unparsed) -> str:
    """The id of a stream request that is broken further in, so that its caller can be answered.

    Raises MalformedRequest, which ends the stream, where not even that can be read.
    """
    try:
        fields = UnknownFieldSet(Empty.FromString(request.raw))
        ids = [
            field.data.decode()
            for field in (fields[index] for index in range(len(fields)))
            if field.field_number == _ID_FIELD and field.wire_type == _LENGTH_DELIMITED
        ]
    except (DecodeError, UnicodeDecodeError):
        raise request.error() from None
    return ids[-1] if ids else ""
