"""Scores of items that were computed lately: the same tokens for the same loaded version need no forward pass."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from typing import Generic, TypeVar

from rm_server.backends.items import EncodedItem

KEY_BYTES = 16

S = TypeVar("S")


def cache_key(loaded_number: int, item: EncodedItem) -> bytes:
    """What decides the item's score: which load of a version, and all that its backend sees.

    A version that is loaded again, perhaps in another precision, has another number, so no bits are ever mixed.
    """
    digest = blake2b(digest_size=KEY_BYTES)
    digest.update(b"%d %d %d|" % (loaded_number, item.completion_start, len(item.ids)))
    digest.update(item.ids.tobytes())
    if item.type_ids is not None:
        digest.update(item.type_ids.tobytes())
    if item.text is not None:
        prompt, completion = item.text
        digest.update(b"|%d|" % len(prompt))
        digest.update(prompt.encode("utf-8", "surrogatepass"))
        digest.update(completion.encode("utf-8", "surrogatepass"))
    return digest.digest()


class ResultCache(Generic[S]):
    """At most ``max_items`` scores; the one that was asked for longest ago goes first."""

    def __init__(self, max_items: int) -> None:
        self._max_items = max_items
        self._scores: OrderedDict[bytes, S] = OrderedDict()

    def get(self, key: bytes) -> S | None:
        """The score, if it is here."""
        score = self._scores.get(key)
        if score is not None:
            self._scores.move_to_end(key)
        return score

    def put(self, key: bytes, score: S) -> None:
        """Keeps the score; the oldest go where there are too many."""
        self._scores[key] = score
        if len(self._scores) > self._max_items:
            self._scores.popitem(last=False)

    def __len__(self) -> int:
        return len(self._scores)
