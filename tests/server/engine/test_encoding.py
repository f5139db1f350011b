"""Who is encoded when, with one thread and an encoder that waits where the test tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from threading import Event

import numpy as np
import pytest
from fake_versions import until

from rm_server.backends.items import Content, EncodedItem
from rm_server.engine.encoding import CHUNK_ITEMS, Encoding, Pair
from rm_server.errors import DeadlineExceeded, Draining, InternalError
from rm_server.registry.manifest import TruncationRule


class GatedEncoder:
    """Notes whose texts it is given, by their first letter, and waits at each until the gate is open."""

    def __init__(self) -> None:
        self.gate = Event()
        self.seen: list[str] = []

    def encode_usual(self, pairs: Sequence[tuple[Content, Content]]) -> Sequence[EncodedItem | None]:
        return [None] * len(pairs)

    def encode(self, prompt: Content, completion: Content, truncation: TruncationRule | None = None) -> EncodedItem:
        assert isinstance(completion, str)
        self.seen.append(completion[0])
        assert self.gate.wait(60)
        if completion[0] == "!":
            raise RuntimeError("/secret/path")
        return EncodedItem(np.array([ord(completion[0])], np.int32), 1)


@pytest.fixture
def encoder() -> GatedEncoder:
    return GatedEncoder()


@pytest.fixture
def encoding(encoder: GatedEncoder) -> Iterator[Encoding]:
    encoding = Encoding(1)
    yield encoding
    encoder.gate.set()
    encoding.close()


def call(letter: str, num_items: int) -> list[Pair]:
    return [("", letter * 1001)] * num_items


@pytest.mark.parametrize("run", ["light", "heavy"])
async def test_a_light_call_waits_for_a_chunk_and_not_for_heavy_calls(
    encoding: Encoding, encoder: GatedEncoder, run: str
) -> None:
    heavy = [asyncio.ensure_future(encoding.encode(encoder, call("h", 200), None, run="heavy")) for _ in range(2)]
    await until(lambda: encoder.seen == ["h"])
    light = asyncio.ensure_future(encoding.encode(encoder, call("l", 1), None, run=run))
    await asyncio.sleep(0)
    encoder.gate.set()
    await asyncio.gather(*heavy, light)
    assert encoder.seen.index("l") <= 3 * CHUNK_ITEMS
    assert encoder.seen.count("h") == 400


async def test_what_nobody_waits_for_is_not_encoded(encoding: Encoding, encoder: GatedEncoder) -> None:
    now = asyncio.get_running_loop().time()
    gone = asyncio.ensure_future(encoding.encode(encoder, call("g", 200), None))
    late = asyncio.ensure_future(encoding.encode(encoder, call("d", 200), None, run="late", deadline=now))
    with pytest.raises(DeadlineExceeded):
        await late
    await until(lambda: encoder.seen == ["g"])
    gone.cancel()
    encoder.gate.set()
    await encoding.encode(encoder, call("a", 2), None)
    assert encoder.seen == ["g"] * CHUNK_ITEMS + ["a"] * 2


async def test_long_texts_make_small_chunks(encoding: Encoding, encoder: GatedEncoder) -> None:
    gone = asyncio.ensure_future(encoding.encode(encoder, [("", "g" * 60_000)] * 3, None))
    await until(lambda: encoder.seen == ["g"])
    gone.cancel()
    encoder.gate.set()
    await encoding.encode(encoder, call("a", 2), None)
    assert encoder.seen == ["g", "a", "a"]


async def test_who_waits_for_a_turn_at_the_end_is_told(encoding: Encoding, encoder: GatedEncoder) -> None:
    begun = asyncio.ensure_future(encoding.encode(encoder, call("b", 200), None))
    await until(lambda: encoder.seen == ["b"])
    encoding.close()
    with pytest.raises(Draining):
        await begun


async def test_a_foreign_errors_text_stays_in_the_log(
    encoding: Encoding, encoder: GatedEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    encoder.gate.set()
    (broken,) = await encoding.encode(encoder, [("", "!")], None)
    assert isinstance(broken, InternalError)
    assert "secret" not in broken.message
    assert "/secret/path" in caplog.text


class UsualEncoder(GatedEncoder):
    """Breaks at "!" with all that it is given at once, and at "?" as Rust does: with what is no Exception."""

    def encode_usual(self, pairs: Sequence[tuple[Content, Content]]) -> Sequence[EncodedItem | None]:
        if any(str(completion).startswith("!") for _, completion in pairs):
            raise RuntimeError("a batch of texts")
        if any(str(completion).startswith("?") for _, completion in pairs):
            raise BaseException("panic")
        return super().encode_usual(pairs)


@pytest.mark.parametrize("length", [1, 1001])
async def test_an_item_that_breaks_the_encoder_does_not_fail_its_neighbours(encoding: Encoding, length: int) -> None:
    encoder = UsualEncoder()
    encoder.gate.set()
    broken, good = await encoding.encode(encoder, [("", "!" * length), ("", "g" * length)], None)
    assert isinstance(broken, InternalError)
    assert isinstance(good, EncodedItem)


async def test_nobody_waits_for_ever_where_an_encoder_panics(encoding: Encoding) -> None:
    encoder = UsualEncoder()
    encoder.gate.set()
    calls = [asyncio.ensure_future(encoding.encode(encoder, call(letter, 2), None)) for letter in "?g"]
    with pytest.raises(InternalError):
        await calls[0]
    assert len(await calls[1]) == 2
