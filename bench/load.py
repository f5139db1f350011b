"""Callers: closed loops that ask again when they are answered, open loops that ask by the clock. No figures here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TypeAlias

import grpc

from bench.service import CHANNEL_OPTIONS, scores_of

SCORE_METHOD = "/rm_api.v1.ScoringService/Score"
_GRACE_S = 120.0

Send: TypeAlias = Callable[[bytes], Awaitable[list[float]]]
"""Sends a request and gives the scores that came; raises where one is missing."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request, ready to be sent, and how much work it is."""

    request: bytes
    num_items: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A call that ended; times in seconds on one clock. ``due``: when it should have been sent.

    ``failure`` empty: it was answered with scores; else the status code. ``share``: how much of its time lay in the
    window that is looked at; ``is_late``: it ended after that.
    """

    call: Call
    caller: int
    due: float
    end: float
    failure: str = ""
    share: float = 1.0
    is_late: bool = False

    @property
    def seconds(self) -> float:
        """From when it was due, so that a late caller hides nothing."""
        return self.end - self.due


@dataclass(frozen=True, slots=True)
class Throughput:
    """What was done in the window. ``latencies_s``: of the calls that ended in it."""

    tokens_per_s: float
    items_per_s: float
    latencies_s: list[float]


async def closed_loop(
    send: Send, calls: Sequence[Sequence[Call]], *, warm_up_s: float, seconds: float, repeat: bool = True
) -> list[Answer]:
    """One caller for each sequence in ``calls``; the calls that were under way in a window after the warm-up.

    ``repeat``: a caller that has sent all of its calls begins anew. A call that fails ends the benchmark.
    """
    opens = time.perf_counter() + warm_up_s
    closes = opens + seconds
    answers: list[Answer] = []

    async def caller(number: int) -> None:
        for call in cycle(calls[number]) if repeat else calls[number]:
            due = time.perf_counter()
            if due >= closes:
                return
            _check(await send(call.request), call)
            end = time.perf_counter()
            if end > opens:
                share = (min(end, closes) - max(due, opens)) / (end - due)
                answers.append(Answer(call, number, due, end, share=share, is_late=end > closes))

    async with asyncio.timeout(warm_up_s + seconds + _GRACE_S):
        await asyncio.gather(*(caller(number) for number in range(len(calls))))
    return sorted(answers, key=lambda answer: answer.end)


async def open_loop(send: Send, schedule: Sequence[tuple[float, int, Call]]) -> list[Answer]:
    """Sends each call at its time (seconds from now, caller, call), answered or not; failures are answers, too."""
    begin = time.perf_counter()

    async def one(at: float, caller: int, call: Call) -> Answer:
        failure = ""
        try:
            _check(await send(call.request), call)
        except grpc.RpcError as error:
            failure = error.code().name
        return Answer(call, caller, begin + at, time.perf_counter(), failure)

    tasks = []
    for at, caller, call in sorted(schedule, key=lambda entry: entry[0]):
        await asyncio.sleep(max(0.0, begin + at - time.perf_counter()))
        tasks.append(asyncio.create_task(one(at, caller, call)))
    async with asyncio.timeout(_GRACE_S):
        return list(await asyncio.gather(*tasks))


def _check(scores: Sequence[float], call: Call) -> None:
    if len(scores) != call.num_items:
        raise RuntimeError(f"{call.num_items} items were sent, and {len(scores)} scores came back.")


def throughput(answers: Sequence[Answer]) -> Throughput:
    """Of closed loops. A call counts by its share that lay in the window.

    Were it all those that ended in the window, the short ones would count too much where a call takes about as long
    as the window.
    """
    # Each caller always has one call under way: together they have as many windows' time as there are callers.
    window_s = sum(answer.share * answer.seconds for answer in answers) / len({answer.caller for answer in answers})
    return Throughput(
        tokens_per_s=sum(answer.share * answer.call.num_tokens for answer in answers) / window_s,
        items_per_s=sum(answer.share * answer.call.num_items for answer in answers) / window_s,
        latencies_s=[answer.seconds for answer in answers if not answer.is_late] or [answers[0].seconds],
    )


class GrpcCalls:
    """Raw calls to a server, for ``async with``. ``timeout_s``: the deadline of each."""

    def __init__(self, address: str, timeout_s: float = _GRACE_S) -> None:
        self._address = address
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Send:
        self._channel = grpc.aio.insecure_channel(self._address, CHANNEL_OPTIONS)
        method = self._channel.unary_unary(SCORE_METHOD)

        async def send(request: bytes) -> list[float]:
            return scores_of(await method(request, timeout=self._timeout_s))

        return send

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()


def closed(
    address: str, calls: Sequence[Sequence[Call]], *, warm_up_s: float, seconds: float, repeat: bool = True
) -> list[Answer]:
    """`closed_loop` on our service."""

    async def run() -> list[Answer]:
        async with GrpcCalls(address) as send:
            return await closed_loop(send, calls, warm_up_s=warm_up_s, seconds=seconds, repeat=repeat)

    return asyncio.run(run())


def waiting(address: str, calls: Sequence[Call], *, seconds: float) -> list[float]:
    """What each call took one caller, in seconds, who waits on gRPC's blocking client."""
    found: list[float] = []
    with grpc.insecure_channel(address, CHANNEL_OPTIONS) as channel:
        method = channel.unary_unary(SCORE_METHOD)
        closes = time.perf_counter() + seconds
        for call in cycle(calls):
            start = time.perf_counter()
            if start >= closes:
                return found
            _check(scores_of(method(call.request, timeout=_GRACE_S)), call)
            found.append(time.perf_counter() - start)
    return found


def opened(address: str, schedule: Sequence[tuple[float, int, Call]], timeout_s: float = _GRACE_S) -> list[Answer]:
    """`open_loop` on our service."""

    async def run() -> list[Answer]:
        async with GrpcCalls(address, timeout_s) as send:
            return await open_loop(send, schedule)

    return asyncio.run(run())
