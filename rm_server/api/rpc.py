"""How a method of a service becomes a gRPC handler: ask who calls, parse, call, turn errors into status."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message

from rm_server.api.access import Access, Identities, grpc_identities
from rm_server.api.calls import Call, Calls, trace_context
from rm_server.api.error_map import outcome_of, short_message, trailing_metadata
from rm_server.api.roles import Role, Rule, rule_of
from rm_server.errors import MalformedRequest, RmError

Send: TypeAlias = Callable[[Message], Awaitable[None]]
"""Writes one message of a streamed answer."""

logger = logging.getLogger(__name__)

REQUEST_ID_METADATA_KEY = "x-request-id"

LAST_WRITE_S = 0.5
"""Of a stream that ends: who reads more slowly is not told why."""


@dataclass(frozen=True, slots=True)
class Unparsed:
    """Bytes that are no message, on a stream whose other requests are to be answered."""

    raw: bytes
    reason: str

    def error(self) -> MalformedRequest:
        """What the caller is told."""
        return MalformedRequest(f"The request could not be parsed: {self.reason}. Texts must be valid UTF-8.")


class Edge:
    """Makes handlers out of objects that have one coroutine a method, of the method's name.

    Unary: ``async Name(request, call) -> response``. Streamed answer: ``async Name(request, call, send)``.
    Streamed both ways: ``async Name(requests, call, send)``; what cannot be parsed comes as ``Unparsed`` there, and
    the method itself holds each request against the caller's rights: ``with call.permit.admit(request)``.
    """

    def __init__(self, calls: Calls, access: Access) -> None:
        self._calls = calls
        self._access = access

    def handler(
        self,
        service: ServiceDescriptor,
        servicer: object,
        *,
        reads: Collection[str] = (),
    ) -> grpc.GenericRpcHandler:
        """A handler for all methods of the service.

        ``reads``: methods that change nothing; they are answered while the server drains, and do not delay its end.
        Those that everybody may call are answered while it starts, too: they are the probes.
        Who may call which of them is in the table of `roles`.
        """
        return grpc.method_handlers_generic_handler(
            service.full_name,
            {
                method.name: self._method(method, getattr(servicer, method.name), method.name in reads)
                for method in service.methods
                if hasattr(servicer, method.name)
            },
        )

    def _method(
        self, method: MethodDescriptor, implementation: Callable[..., Any], is_read: bool
    ) -> grpc.RpcMethodHandler:
        rule = rule_of(f"/{method.containing_service.full_name}/{method.name}")
        parse = parser(message_factory.GetMessageClass(method.input_type))

        # gRPC hands on bytes: as messages they may take 30 times the memory, and who calls is not known yet.
        async def unary(raw: bytes, context: Any) -> Any:
            async def work(call: Call) -> Any:
                message = _parsed(parse(raw))
                with call.permit.admit(message):
                    return await implementation(message, call)

            return await self._answer(method, rule, context, work, is_read)

        async def server_stream(raw: bytes, context: Any) -> None:
            async def work(call: Call) -> None:
                message = _parsed(parse(raw))
                with call.permit.admit(message):
                    async with self._calls.stream():
                        await implementation(message, call, _send(call, message, context))

            await self._answer(method, rule, context, work, is_read)

        async def both_stream(raws: AsyncIterator[bytes], context: Any) -> None:
            async def work(call: Call) -> None:
                async with self._calls.stream():
                    await implementation((parse(raw) async for raw in raws), call, context.write)

            await self._answer(method, rule, context, work, is_read)

        if method.client_streaming and method.server_streaming:
            return grpc.stream_stream_rpc_method_handler(both_stream, response_serializer=_serialize)
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(server_stream, response_serializer=_serialize)
        return grpc.unary_unary_rpc_method_handler(unary, response_serializer=_serialize)

    async def _answer(
        self,
        method: MethodDescriptor,
        rule: Rule,
        context: Any,
        work: Callable[[Call], Awaitable[Any]],
        is_read: bool,
    ) -> Any:
        metadata = dict(context.invocation_metadata() or ())
        # A stream of requests is no work by itself: each request on it is, and is counted, let in or refused alone.
        is_read = is_read or method.client_streaming
        name = f"{method.name}/stream" if method.client_streaming else method.name
        call = Call(name, actor="", deadline=_deadline(context), trace_context=trace_context(metadata))
        if request_id := metadata.get(REQUEST_ID_METADATA_KEY):
            call.request_id = str(request_id)
        try:
            with self._calls.under_way(call, is_read=is_read, is_probe=rule.role is Role.PUBLIC):
                call.permit = self._access.permit(rule, metadata.get("authorization"), _identities(context))
                call.actor = call.permit.actor
                return await work(call)
        except RmError as error:
            failure = error
        try:
            await context.abort(outcome_of(failure).status, short_message(failure), trailing_metadata(failure))
        except grpc.aio.InternalError:
            # A message that the caller does not read is still being written: the call can only end with the server.
            logger.warning("a caller reads too slowly to be told why its stream ended", extra={"method": method.name})


def parser(message_class: type[Message]) -> Callable[[bytes], Message | Unparsed]:
    """Makes messages of bytes; never raises."""

    def parse(raw: bytes) -> Message | Unparsed:
        try:
            return message_class.FromString(raw)
        except DecodeError as error:
            return Unparsed(raw, str(error))

    return parse


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _parsed(request: Message | Unparsed) -> Message:
    if isinstance(request, Unparsed):
        raise request.error()
    return request


def _send(call: Call, request: Message, context: Any) -> Send:
    """Of an answer that may go on for hours: it ends when its token may ask for it no more."""

    async def send(message: Message) -> None:
        call.permit.check(request)
        writing = asyncio.ensure_future(context.write(message))
        try:
            await asyncio.wait((writing,))  # which leaves it alone when this is cancelled
        except asyncio.CancelledError:
            # While a message is being written, gRPC cannot tell the caller why its stream ends.
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(writing, return_exceptions=True), LAST_WRITE_S)
            raise
        await writing

    return send


def _identities(context: Any) -> Identities:
    return lambda: grpc_identities(context.auth_context())


def _deadline(context: Any) -> float | None:
    remaining_s = context.time_remaining()
    return None if remaining_s is None else asyncio.get_running_loop().time() + float(remaining_s)
