"""Deadlines, targets and hedging of single calls, with a clock that the test moves."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from rm_api.v1 import scoring_pb2
from waiting import wait_until

from ppo_client import RetryPolicy, errors
from ppo_client.client.caller import Caller
from ppo_client.client.settings import ClientSettings

from .conftest import QUICK
from .fake_server import Behaviour, FakeServer, fail, wait_for, wait_until_cancelled

REQUEST = scoring_pb2.ScoreRequest(model="length", request_id="r")
DRAINING = fail(grpc.StatusCode.UNAVAILABLE, "DRAINING")


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_in(self, seconds: float, behave: Behaviour) -> Behaviour:
        """The behaviour, after which so much time has passed."""

        def slow(server: FakeServer, request: Any, context: grpc.ServicerContext) -> scoring_pb2.ScoreResponse | None:
            self.now += seconds
            return behave(server, request, context)

        return slow


@asynccontextmanager
async def caller_of(
    *servers: FakeServer, clock: Clock | None = None, draw: float = 0.0, **settings: Any
) -> AsyncIterator[Caller]:
    """A caller whose first call goes to the first server, where `draw` is small."""
    settings.setdefault("retry", QUICK)
    targets = tuple(server.address for server in servers)
    options: dict[str, Any] = {} if clock is None else {"clock": clock}
    caller = Caller(ClientSettings(targets, **settings), draw=lambda: draw, **options)
    try:
        yield caller
    finally:
        caller.close()


async def ask(caller: Caller, *, timeout_s: float = 60.0, is_hedged: bool = False) -> scoring_pb2.ScoreResponse:
    response: scoring_pb2.ScoreResponse = await caller.call(
        lambda stubs: stubs.scoring.Score, REQUEST, caller.clock() + timeout_s, is_hedged=is_hedged
    )
    return response


StartServer = Callable[..., FakeServer]


async def test_every_attempt_gets_what_is_left_of_the_deadline(server: FakeServer) -> None:
    clock = Clock()
    server.will(clock.pass_in(4.0, DRAINING), clock.pass_in(3.0, DRAINING))
    async with caller_of(server, clock=clock) as caller:
        await ask(caller, timeout_s=10.0)
    first, second, third = (seen.remaining_s for seen in server.seen)
    assert first is not None
    assert second is not None
    assert third is not None
    assert 6.5 < first <= 10.1  # gRPC rounds deadlines up on their way
    assert 3.5 < second <= 6.1
    assert third <= 3.1


async def test_a_deadline_that_passed_during_an_attempt_ends_the_call(server: FakeServer) -> None:
    clock = Clock()
    server.will(clock.pass_in(11.0, DRAINING))
    async with caller_of(server, clock=clock) as caller:
        with pytest.raises(errors.Draining):
            await ask(caller, timeout_s=10.0)
    assert len(server.seen) == 1


async def test_a_server_that_drains_is_left_at_once_for_another(start_server: StartServer) -> None:
    first, second = start_server(version=1), start_server(version=2)
    first.will(DRAINING)
    async with caller_of(first, second) as caller:
        assert [(await ask(caller)).version for _ in range(4)] == [2, 2, 2, 2]
    assert len(first.seen) == 1


@pytest.mark.parametrize(("num_servers", "pause"), [(1, "0.20"), (2, "0.00")])
async def test_a_pause_is_made_where_there_is_no_other_server(
    start_server: StartServer, num_servers: int, pause: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ppo_client")
    servers = [start_server() for _ in range(num_servers)]
    async with caller_of(*servers, draw=0.4, retry=RetryPolicy(base_backoff_s=0.5)) as caller:
        await ask(caller)
        servers[-1].will(DRAINING)
        began = time.monotonic()
        await ask(caller)
        assert time.monotonic() - began > float(pause)
    assert [message for message in caplog.messages if message.endswith(f"; again in {pause} s")]


@pytest.mark.parametrize(("draw", "first"), [(0.0, 1), (0.4, 2), (0.9, 3)])
async def test_clients_do_not_all_begin_with_the_same_server(
    start_server: StartServer, draw: float, first: int
) -> None:
    servers = [start_server(version=number) for number in (1, 2, 3)]
    async with caller_of(*servers, draw=draw) as caller:
        assert (await ask(caller)).version == first


async def test_a_full_server_is_asked_again_when_it_said(start_server: StartServer) -> None:
    clock = Clock()
    first, second = start_server(version=1), start_server(version=2)
    first.will(fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after_s=5.0))
    async with caller_of(first, second, clock=clock) as caller:
        assert [(await ask(caller)).version for _ in range(3)] == [2, 2, 2]
        clock.now += 5.0
        assert {(await ask(caller)).version for _ in range(2)} == {1, 2}


async def test_a_call_goes_elsewhere_after_a_failure_that_does_not_speak_against_the_server(
    start_server: StartServer,
) -> None:
    first, second = start_server(version=1), start_server(version=2)
    async with caller_of(first, second) as caller:

        def fail_while_another_call_takes_the_turn(
            server: FakeServer, request: Any, context: grpc.ServicerContext
        ) -> None:
            assert caller.targets.name(caller.targets.choose(caller.clock())) == second.address
            fail(grpc.StatusCode.UNAVAILABLE, "WORKER_FAILED")(server, request, context)

        first.will(fail_while_another_call_takes_the_turn)
        assert (await ask(caller)).version == 2


async def test_successes_pay_for_later_retries(server: FakeServer) -> None:
    policy = type(QUICK)(base_backoff_s=0.002, max_backoff_s=0.02, burst=1, refill_per_s=0.001)
    async with caller_of(server, clock=Clock(), retry=policy) as caller:
        for _ in range(5):
            server.will(DRAINING)
            await ask(caller)
    assert len(server.seen) == 10


async def test_in_an_outage_many_calls_make_few_attempts(server: FakeServer) -> None:
    clock = Clock()
    server.always = DRAINING
    policy = type(QUICK)(base_backoff_s=0.002, max_backoff_s=0.02, burst=5, refill_per_s=0.001)
    async with caller_of(server, clock=clock, retry=policy) as caller:
        calls = [asyncio.create_task(ask(caller)) for _ in range(20)]
        await asyncio.to_thread(wait_until, lambda: len(server.seen) == 25)
        # The budget is spent: they all wait for tokens, which come with the clock, until the deadline ends it.
        clock.now += 90.0
        for call in calls:
            with pytest.raises(errors.Draining):
                await call
    assert len(server.seen) == 25


async def test_no_hedge_while_the_first_server_is_quick(start_server: StartServer) -> None:
    first, second = start_server(version=1), start_server(version=2)
    async with caller_of(first, second, hedge_after_s=20.0) as caller:
        versions = [(await ask(caller, is_hedged=True)).version for _ in range(4)]
    assert versions == [1, 2, 1, 2], "a hedge would take the other server's turn"


async def test_a_slow_server_is_overtaken_by_a_second_one_and_its_call_cancelled(start_server: StartServer) -> None:
    first, second = start_server(version=1), start_server(version=2)
    first.will(wait_until_cancelled)

    def answer_when_both_are_asked(server: FakeServer, request: Any, context: grpc.ServicerContext) -> None:
        wait_until(lambda: bool(first.seen))  # a call that is overtaken sooner may never be sent

    second.will(answer_when_both_are_asked)
    async with caller_of(first, second, hedge_after_s=0.01) as caller:
        assert (await ask(caller, is_hedged=True)).version == 2
        assert await asyncio.to_thread(first.cancelled.wait, 20)


async def test_a_hedge_that_fails_leaves_the_first_server_its_time(start_server: StartServer) -> None:
    first, second = start_server(version=1), start_server(version=2)
    release = threading.Event()
    first.will(wait_for(release))

    def drain_and_release(server: FakeServer, request: Any, context: grpc.ServicerContext) -> None:
        release.set()
        DRAINING(server, request, context)

    second.will(drain_and_release)
    async with caller_of(first, second, hedge_after_s=0.01) as caller:
        assert (await ask(caller, is_hedged=True)).version == 1


async def test_when_both_fail_the_call_is_repeated(start_server: StartServer) -> None:
    first, second = start_server(version=1), start_server(version=2)
    both = threading.Event()

    def wait_and_drain(server: FakeServer, request: Any, context: grpc.ServicerContext) -> None:
        assert both.wait(30)
        DRAINING(server, request, context)

    def release_and_drain(server: FakeServer, request: Any, context: grpc.ServicerContext) -> None:
        both.set()
        DRAINING(server, request, context)

    first.will(wait_and_drain)
    second.will(release_and_drain)
    async with caller_of(first, second, hedge_after_s=0.01) as caller:
        assert (await ask(caller, is_hedged=True)).version in (1, 2)
    assert len(first.seen) + len(second.seen) == 3


async def test_cancelling_a_hedged_call_cancels_both(start_server: StartServer) -> None:
    first, second = start_server(version=1), start_server(version=2)
    first.will(wait_until_cancelled)
    second.will(wait_until_cancelled)
    async with caller_of(first, second, hedge_after_s=0.01) as caller:
        call = asyncio.create_task(ask(caller, is_hedged=True))
        await asyncio.to_thread(wait_until, lambda: second.seen)
        call.cancel()
        assert await asyncio.to_thread(first.cancelled.wait, 20)
        assert await asyncio.to_thread(second.cancelled.wait, 20)
