"""The answers of a streaming call, on an event loop: a thread of its own waits for them, however long they take."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import grpc


async def answers_of(call: Any) -> AsyncGenerator[Any, None]:
    """What a call of gRPC's blocking API brings, as it comes. Raises the grpc.RpcError that ends it.

    The call is cancelled, and with it the thread ends, when the iterator is closed. Not on the loop's executor: its
    threads are few, and each watch would keep one for as long as it lasts.
    """
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[Any] = asyncio.Queue()

    def hand_over(answer: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(arrived.put_nowait, answer)

    def read() -> None:
        try:
            for answer in call:
                hand_over(answer)
            hand_over(None)
        except grpc.RpcError as error:
            hand_over(error)

    threading.Thread(target=read, name="reward-client-stream", daemon=True).start()
    try:
        while (answer := await arrived.get()) is not None:
            if isinstance(answer, grpc.RpcError):
                raise answer
            yield answer
    finally:
        call.cancel()
