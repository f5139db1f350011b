"""The edge between gRPC and a servicer: parsing, tokens, errors, deadlines, cancellation, draining."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import pytest
from google.protobuf.message import Message
from rm_api.v1 import errors_pb2, models_pb2, models_pb2_grpc

from rm_server.api import rpc
from rm_server.api.access import Access
from rm_server.api.calls import Call, Calls
from rm_server.api.rpc import Edge, Send, Unparsed, parser
from rm_server.errors import CatalogUnavailable, InternalError, QueueFull
from rm_server.metrics import Metrics

SERVICE = models_pb2.DESCRIPTOR.services_by_name["ModelService"]


class Servicer:
    """Does what the selector says."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.entered = asyncio.Event()
        self.left_by: BaseException | None = None
        self.go_on = asyncio.Event()

    async def GetVersion(self, request: models_pb2.GetVersionRequest, call: Call) -> models_pb2.GetVersionResponse:
        self.calls.append(call)
        match request.selector:
            case "full":
                raise QueueFull("400 items wait, the limit is 400.", retry_after_s=0.5)
            case "bug":
                raise ZeroDivisionError("secret of the implementation")
            case "defect":
                raise InternalError("A worker answered with 3 scores for 4 items.")
        call.key = ("m", 1)
        return models_pb2.GetVersionResponse(version=models_pb2.Version(model=request.selector))

    async def LoadVersion(self, request: models_pb2.LoadVersionRequest, call: Call) -> models_pb2.LoadVersionResponse:
        self.entered.set()
        try:
            await self.go_on.wait()
        except BaseException as error:
            self.left_by = error
            raise
        return models_pb2.LoadVersionResponse()

    async def WatchModels(self, request: models_pb2.WatchModelsRequest, call: Call, send: Send) -> None:
        name = "m" * 2_000_000 if request.model == "large" else "m"  # more than gRPC sends before somebody reads
        self.entered.set()
        await send(
            models_pb2.WatchModelsResponse(
                change=models_pb2.WatchModelsResponse.CHANGE_INITIAL, model=models_pb2.Model(name=name)
            )
        )
        if request.model == "broken":
            raise CatalogUnavailable("The database is gone.")
        await self.go_on.wait()

    async def unused(self, request: object, call: Call) -> None:
        raise AssertionError

    RegisterVersion = ListModels = UnloadVersion = SetLabel = RemoveLabel = unused
    DeleteVersion = ListHistory = GetServerStatus = unused


class World:
    def __init__(self, token: str = "", access_share: float = 0.0, *, is_open: bool = True) -> None:
        self.metrics = Metrics()
        self.calls = Calls(self.metrics, access_share)
        if is_open:
            self.calls.open()
        self.servicer = Servicer()
        self.edge = Edge(self.calls, Access(self.metrics, token))

    def count(self, method: str, reason: str, model: str = "", version: str = "") -> float | None:
        return self.metrics.registry.get_sample_value(
            "rm_requests_total", {"method": method, "model": model, "version": version, "reason": reason}
        )

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((self.edge.handler(SERVICE, self.servicer, reads=("GetVersion",)),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield channel
        finally:
            await server.stop(0)


async def failure(call: grpc.aio.Call) -> tuple[grpc.aio.AioRpcError, errors_pb2.Error]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    metadata = dict(tuple(caught.value.trailing_metadata() or ()))
    return caught.value, errors_pb2.Error.FromString(metadata["rm-error-bin"])  # type: ignore[arg-type]


def get(channel: grpc.aio.Channel, selector: str, **options: object) -> grpc.aio.UnaryUnaryCall:
    return models_pb2_grpc.ModelServiceStub(channel).GetVersion(
        models_pb2.GetVersionRequest(selector=selector), **options
    )


async def test_an_answer_is_counted_under_its_version() -> None:
    world = World()
    async with world.channel() as channel:
        assert (await get(channel, "m@1")).version.model == "m@1"
    assert world.count("GetVersion", "ok", "m", "1") == 1


async def test_an_error_travels_with_status_reason_and_pushback() -> None:
    world = World()
    async with world.channel() as channel:
        status, error = await failure(get(channel, "full"))
    assert status.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert status.details() == error.message == "400 items wait, the limit is 400."
    assert (error.reason, error.retry_after_seconds) == (errors_pb2.ERROR_REASON_QUEUE_FULL, 0.5)
    assert ("grpc-retry-pushback-ms", "500") in list(status.trailing_metadata() or ())
    assert world.count("GetVersion", "queue_full") == 1


async def test_a_bug_is_told_by_request_id_and_not_by_its_text(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    async with world.channel() as channel:
        with caplog.at_level(logging.ERROR):
            status, error = await failure(get(channel, "bug", metadata=(("x-request-id", "r-17"),)))
    assert status.code() is grpc.StatusCode.INTERNAL
    assert error.reason == errors_pb2.ERROR_REASON_INTERNAL
    assert "r-17" in error.message
    assert "secret" not in error.message
    (record,) = caplog.records
    assert vars(record)["request_id"] == "r-17"
    assert "ZeroDivisionError: secret of the implementation" in caplog.text


async def test_a_defect_that_the_server_found_itself_is_logged_too(caplog: pytest.LogCaptureFixture) -> None:
    async with World().channel() as channel:
        with caplog.at_level(logging.ERROR):
            status, _ = await failure(get(channel, "defect"))
    assert status.code() is grpc.StatusCode.INTERNAL
    assert "3 scores for 4 items" in caplog.text


@pytest.mark.parametrize("raw", [b"\x0a\x02\xff\xfe", b"\x0a\x7f", b"\xff"], ids=["utf-8", "short", "garbage"])
async def test_what_is_no_message_is_malformed_and_not_internal(raw: bytes) -> None:
    world = World()
    async with world.channel() as channel:
        status, error = await failure(channel.unary_unary("/rm_api.v1.ModelService/GetVersion")(raw))
        assert (await get(channel, "m@1")).version.model == "m@1"
    assert status.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == errors_pb2.ERROR_REASON_MALFORMED_REQUEST
    assert world.count("GetVersion", "malformed_request") == 1


async def test_a_stream_may_fail_after_it_began() -> None:
    world = World()
    async with world.channel() as channel:
        stub = models_pb2_grpc.ModelServiceStub(channel)
        watch = stub.WatchModels(models_pb2.WatchModelsRequest(model="broken"))
        assert (await watch.read()).change == models_pb2.WatchModelsResponse.CHANGE_INITIAL
        status, error = await failure(watch.read())
    assert (status.code(), error.message) == (grpc.StatusCode.UNAVAILABLE, "The database is gone.")


async def test_streams_end_when_the_server_does() -> None:
    world = World()
    async with world.channel() as channel:
        watch = models_pb2_grpc.ModelServiceStub(channel).WatchModels(models_pb2.WatchModelsRequest())
        assert (await watch.read()).change == models_pb2.WatchModelsResponse.CHANGE_INITIAL
        world.calls.drain()
        world.calls.end_streams()
        status, error = await failure(watch.read())
    assert (status.code(), error.reason) == (grpc.StatusCode.UNAVAILABLE, errors_pb2.ERROR_REASON_DRAINING)


async def test_a_stream_that_ends_while_it_writes_says_why() -> None:
    world = World()
    async with asyncio.timeout(30), world.channel() as channel:
        watch = models_pb2_grpc.ModelServiceStub(channel).WatchModels(models_pb2.WatchModelsRequest(model="large"))
        await watch.wait_for_connection()
        await world.servicer.entered.wait()
        world.calls.drain()
        world.calls.end_streams()
        await asyncio.sleep(0.05)
        assert len((await watch.read()).model.name) == 2_000_000
        _, error = await failure(watch.read())
    assert error.reason == errors_pb2.ERROR_REASON_DRAINING


async def test_the_deadline_is_on_the_loop_s_clock() -> None:
    world = World()
    async with world.channel() as channel:
        await get(channel, "m@1", timeout=30)
        await get(channel, "m@1")
    with_deadline, without = world.servicer.calls
    assert with_deadline.deadline is not None
    assert 0 < with_deadline.deadline - asyncio.get_running_loop().time() <= 30.1
    assert without.deadline is None


async def test_a_cancelled_call_is_cancelled_here() -> None:
    world = World()
    async with world.channel() as channel:
        call = models_pb2_grpc.ModelServiceStub(channel).LoadVersion(models_pb2.LoadVersionRequest())
        sent = asyncio.ensure_future(call)
        await world.servicer.entered.wait()
        sent.cancel()
        assert await world.calls.finished(timeout_s=10)
    assert isinstance(world.servicer.left_by, asyncio.CancelledError)
    assert world.count("LoadVersion", "cancelled") == 1


async def test_a_call_past_its_deadline_is_cancelled_here() -> None:
    world = World()
    async with world.channel() as channel:
        call = models_pb2_grpc.ModelServiceStub(channel).LoadVersion(models_pb2.LoadVersionRequest(), timeout=1.0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert await world.calls.finished(timeout_s=10)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert isinstance(world.servicer.left_by, asyncio.CancelledError)
    assert world.count("LoadVersion", "deadline_exceeded") == 1


async def test_calls_are_refused_before_the_server_opens_and_work_while_it_drains() -> None:
    world = World(is_open=False)
    async with world.channel() as channel:
        stub = models_pb2_grpc.ModelServiceStub(channel)
        for too_early in (stub.LoadVersion(models_pb2.LoadVersionRequest()), get(channel, "m@1")):
            status, error = await failure(too_early)
            assert (status.code(), error.reason) == (grpc.StatusCode.UNAVAILABLE, errors_pb2.ERROR_REASON_DRAINING)
            assert error.retry_after_seconds > 0
        world.calls.open()
        under_way = asyncio.ensure_future(stub.LoadVersion(models_pb2.LoadVersionRequest()))
        await world.servicer.entered.wait()
        world.calls.drain()
        status, error = await failure(stub.LoadVersion(models_pb2.LoadVersionRequest()))
        assert (status.code(), error.reason) == (grpc.StatusCode.UNAVAILABLE, errors_pb2.ERROR_REASON_DRAINING)
        assert (await get(channel, "m@1")).version.model == "m@1"
        assert not await world.calls.finished(timeout_s=0)
        world.servicer.go_on.set()
        await under_way
        assert await world.calls.finished(timeout_s=10)
    assert world.metrics.registry.get_sample_value("rm_draining") == 1


async def test_a_server_with_a_token_wants_it() -> None:
    world = World(token="s3cret")
    async with world.channel() as channel:
        for metadata in ((), (("authorization", "Bearer wrong"),), (("authorization", "Basic s3cret"),)):
            status, error = await failure(get(channel, "m@1", metadata=metadata))
            assert status.code() is grpc.StatusCode.UNAUTHENTICATED
            assert error.reason == errors_pb2.ERROR_REASON_UNAUTHENTICATED
            assert "s3cret" not in error.message
        assert not world.servicer.calls
        await get(channel, "m@1", metadata=(("authorization", "Bearer s3cret"),))
    assert world.servicer.calls[0].actor == "token"
    assert world.count("GetVersion", "unauthenticated") == 3


async def test_no_message_is_made_of_what_a_stranger_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []

    def noting(message_class: type[Message]) -> Callable[[bytes], Message | Unparsed]:
        def parse(raw: bytes) -> Message | Unparsed:
            parsed.append(raw)
            return parser(message_class)(raw)

        return parse

    monkeypatch.setattr(rpc, "parser", noting)
    async with World(token="s3cret").channel() as channel:
        await failure(get(channel, "m@1"))
        assert not parsed
        await get(channel, "m@1", metadata=(("authorization", "Bearer s3cret"),))
    assert len(parsed) == 1


async def test_the_access_log_is_off_unless_a_share_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="rm_server"):
        for share, num_lines in ((0.0, 0), (1.0, 1)):
            caplog.clear()
            async with World(access_share=share).channel() as channel:
                await get(channel, "m@1", metadata=(("x-request-id", "r-1"),))
            lines = [vars(record) for record in caplog.records if record.message == "call"]
            assert [(line["request_id"], line["model"], line["reason"]) for line in lines] == [
                ("r-1", "m", "ok")
            ] * num_lines
