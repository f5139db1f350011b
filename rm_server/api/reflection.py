"""Server reflection, by which tools such as grpcurl learn the contract: gRPC's own, behind our tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection

from grpc_reflection.v1alpha import reflection, reflection_pb2

from rm_server.api.calls import Call
from rm_server.api.rpc import Send, Unparsed

REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]


class ReflectionService:
    """``services``: the full names of what the server offers, itself included."""

    def __init__(self, services: Collection[str]) -> None:
        self._answers = reflection.aio.ReflectionServicer(services)

    async def ServerReflectionInfo(
        self,
        requests: AsyncIterator[reflection_pb2.ServerReflectionRequest | Unparsed],
        call: Call,
        send: Send,
    ) -> None:
        """Answers question by question."""

        async def parsed() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
            async for request in requests:
                if isinstance(request, Unparsed):
                    raise request.error()
                with call.permit.admit(request):
                    yield request

        async for response in self._answers.ServerReflectionInfo(parsed(), None):
            await send(response)
