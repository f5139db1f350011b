"""Turns the content of calls into tokens beside the event loop; what is small goes at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

from rm_server.backends.interface import Encoder
from rm_server.backends.items import Content, EncodedItem
from rm_server.errors import InternalError, RmError
from rm_server.registry.manifest import TruncationRule

Pair: TypeAlias = tuple[Content, Content]
"""Prompt and completion."""

INLINE_CHARACTERS = 1000
"""A call of at most so many is encoded on the event loop: it takes less than half a millisecond, two hops more."""

CHARACTERS_PER_ID = 0.1
"""A token id costs as much as so many characters: it is only copied."""

_log = logging.getLogger(__name__)


class Encoding:
    """A few threads for tokenizers, which let go of the GIL while they work."""

    def __init__(self, num_threads: int) -> None:
        self._num_threads = max(1, num_threads)
        self._threads = ThreadPoolExecutor(self._num_threads, thread_name_prefix="encode")

    async def encode(
        self, encoder: Encoder, pairs: Sequence[Pair], truncation: TruncationRule | None
    ) -> list[EncodedItem | RmError]:
        """One item or error for each pair, in order. ``truncation`` None: the version's own rule."""
        if sum(_cost(prompt) + _cost(completion) for prompt, completion in pairs) <= INLINE_CHARACTERS:
            return _encode(encoder, pairs, truncation)
        loop = asyncio.get_running_loop()
        size = -(-len(pairs) // self._num_threads)
        parts = [pairs[start : start + size] for start in range(0, len(pairs), size)]
        done = await asyncio.gather(
            *(loop.run_in_executor(self._threads, _encode, encoder, part, truncation) for part in parts)
        )
        return [item for part in done for item in part]

    def close(self) -> None:
        """Ends the threads when they have done what they are doing."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _encode(encoder: Encoder, pairs: Sequence[Pair], truncation: TruncationRule | None) -> list[EncodedItem | RmError]:
    return [_encode_one(encoder, prompt, completion, truncation) for prompt, completion in pairs]


def _encode_one(
    encoder: Encoder, prompt: Content, completion: Content, truncation: TruncationRule | None
) -> EncodedItem | RmError:
    try:
        return encoder.encode(prompt, completion, truncation)
    except RmError as error:
        return error
    except Exception as error:
        _log.exception("An item could not be encoded.")
        return InternalError(f"The item could not be encoded: {type(error).__name__}: {error}")


def _cost(content: Content) -> float:
    if isinstance(content, str):
        return len(content)
    if content and isinstance(content[0], int):
        return CHARACTERS_PER_ID * len(content)
    return sum(len(message.content) for message in content if not isinstance(message, int)) + 50 * len(content)
