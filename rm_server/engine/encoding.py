"""Turns the content of calls into tokens beside the event loop; what is small goes at once."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TypeAlias

from rm_server.backends.interface import Encoder
from rm_server.backends.items import Content, EncodedItem, is_ids
from rm_server.engine.turns import Turns
from rm_server.errors import DeadlineExceeded, Draining, InternalError, RmError
from rm_server.registry.manifest import TruncationRule

Pair: TypeAlias = tuple[Content, Content]
"""Prompt and completion."""

INLINE_CHARACTERS = 1000
"""A call of at most so many is encoded on the event loop: it takes less than half a millisecond, two hops more."""

CHARACTERS_PER_ID = 0.1
"""A token id costs as much as so many characters: it is only copied."""

CHUNK_ITEMS = 32
CHUNK_CHARACTERS = 50_000
"""A thread is given so much at once, some 25 ms of work, but at least one item; then it is another one's turn."""

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Job:
    """A call whose items become tokens. ``next``: the first pair that no thread was given yet."""

    encoder: Encoder
    pairs: Sequence[Pair]
    truncation: TruncationRule | None
    done: asyncio.Future[list[EncodedItem | RmError]]
    items: dict[int, list[EncodedItem | RmError]] = field(default_factory=dict)
    next: int = 0
    num_encoded: int = 0

    def next_end(self) -> tuple[int, float]:
        """Where the next chunk ends, and what it costs."""
        cost = 0.0
        for end in range(self.next, min(self.next + CHUNK_ITEMS, len(self.pairs))):
            cost += sum(map(_cost, self.pairs[end]))
            if cost >= CHUNK_CHARACTERS:
                return end + 1, cost
        return min(self.next + CHUNK_ITEMS, len(self.pairs)), cost


class Encoding:
    """A few threads for tokenizers, which let go of the GIL while they work. Lives on the event loop.

    Calls are encoded in chunks: runs take turns by characters, and so do the calls of a run, chunk by chunk. What
    nobody waits for any more is left where it is.
    """

    def __init__(self, num_threads: int) -> None:
        self._num_idle = max(1, num_threads)
        self._threads = ThreadPoolExecutor(self._num_idle, thread_name_prefix="encode")
        self._turns: Turns[str] = Turns(CHUNK_CHARACTERS)
        self._jobs: dict[str, deque[_Job]] = {}

    async def encode(
        self,
        encoder: Encoder,
        pairs: Sequence[Pair],
        truncation: TruncationRule | None,
        *,
        run: str = "",
        deadline: float | None = None,
    ) -> list[EncodedItem | RmError]:
        """One item or error for each pair, in order. ``truncation`` None: the version's own rule.

        ``deadline`` on the event loop's clock; raises DeadlineExceeded when it passes before all is done.
        """
        if sum(map(_cost, chain.from_iterable(pairs))) <= INLINE_CHARACTERS:
            return _encode(encoder, pairs, truncation)
        job = _Job(encoder, pairs, truncation, asyncio.get_running_loop().create_future())
        self._jobs.setdefault(run, deque()).append(job)
        self._turns.join(run)
        self._dispatch()
        try:
            # Both the deadline and a caller who goes away cancel the future, and with it the job.
            async with asyncio.timeout_at(deadline):
                return await job.done
        except TimeoutError:
            raise DeadlineExceeded("The deadline passed before all items were tokens; nothing was computed.") from None

    def close(self) -> None:
        """Ends the threads when they have done what they are doing, and fails what waits for them."""
        for run, jobs in self._jobs.items():
            self._turns.leave(run)
            for job in jobs:
                if not job.done.done():
                    job.done.set_exception(Draining("The server stopped before the items were tokens."))
        self._jobs.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _dispatch(self) -> None:
        while self._num_idle and (run := self._turns.next()) is not None:
            jobs = self._jobs[run]
            job = jobs.popleft()
            if not job.done.done():
                start = job.next
                job.next, cost = job.next_end()
                self._turns.charge(run, 1 + round(cost))
                self._num_idle -= 1
                chunk = asyncio.get_running_loop().run_in_executor(
                    self._threads, _encode, job.encoder, job.pairs[start : job.next], job.truncation
                )
                chunk.add_done_callback(partial(self._on_chunk, job, start))
                if job.next < len(job.pairs):
                    jobs.append(job)
            if not jobs:
                del self._jobs[run]
                self._turns.leave(run)

    def _on_chunk(self, job: _Job, start: int, chunk: asyncio.Future[list[EncodedItem | RmError]]) -> None:
        self._num_idle += 1
        if not chunk.cancelled() and not job.done.done():
            if (error := chunk.exception()) is not None:  # a tokenizer's panic: that is no Exception
                _log.error("Items could not be encoded.", exc_info=error)
                job.done.set_exception(_not_encoded())
            else:
                job.items[start] = chunk.result()
                job.num_encoded += len(job.items[start])
                if job.num_encoded == len(job.pairs):
                    job.done.set_result([item for start in sorted(job.items) for item in job.items[start]])
        self._dispatch()


def _encode(encoder: Encoder, pairs: Sequence[Pair], truncation: TruncationRule | None) -> list[EncodedItem | RmError]:
    return [
        _encode_one(encoder, prompt, completion, truncation) if item is None else item
        for item, (prompt, completion) in zip(_usual(encoder, pairs), pairs, strict=True)
    ]


def _usual(encoder: Encoder, pairs: Sequence[Pair]) -> Sequence[EncodedItem | None]:
    try:
        return encoder.encode_usual(pairs)
    except Exception:
        return [None] * len(pairs)  # one by one the guilty item fails alone, and says why


def _encode_one(
    encoder: Encoder, prompt: Content, completion: Content, truncation: TruncationRule | None
) -> EncodedItem | RmError:
    try:
        return encoder.encode(prompt, completion, truncation)
    except RmError as error:
        return error
    except Exception:
        _log.exception("An item could not be encoded.")
        return _not_encoded()


def _not_encoded() -> InternalError:
    return InternalError("The item could not be encoded; the server's log says why.")


def _cost(content: Content) -> float:
    if isinstance(content, str):
        return len(content)
    if is_ids(content):
        return CHARACTERS_PER_ID * len(content)
    return sum(len(message.content) for message in content if not isinstance(message, int)) + 50 * len(content)
