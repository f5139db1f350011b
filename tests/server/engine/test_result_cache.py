"""The cache tells items apart by all that decides their score, and stays small."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from rm_server.backends.items import EncodedItem
from rm_server.engine.result_cache import ResultCache, cache_key


def item(
    *ids: int, start: int = 0, types: tuple[int, ...] | None = None, text: tuple[str, str] | None = None
) -> EncodedItem:
    type_ids = None if types is None else np.array(types, np.int32)
    return EncodedItem(np.array(ids, np.int32), len(ids), completion_start=start, type_ids=type_ids, text=text)


def test_items_that_may_score_differently_have_different_keys() -> None:
    keys = [
        cache_key(1, item(1, 2)),
        cache_key(2, item(1, 2)),
        cache_key(1, item(2, 1)),
        cache_key(1, item(1, 2, 0)),
        cache_key(1, item(1, 2, start=1)),
        cache_key(1, item(1, 2, types=(0, 1))),
        cache_key(1, item(1, types=(2,))),
        cache_key(1, item(text=("a", "bc"))),
        cache_key(1, item(text=("ab", "c"))),
        cache_key(1, item(text=("", "abc"))),
    ]
    assert all(one != other for one, other in combinations(keys, 2))


def test_the_same_item_has_the_same_key() -> None:
    assert cache_key(1, item(1, 2, start=1)) == cache_key(1, item(1, 2, start=1))
    assert cache_key(1, item(text=("\ud800", "b"))) == cache_key(1, item(text=("\ud800", "b")))


def test_forgets_what_was_asked_for_longest_ago() -> None:
    cache = ResultCache(2)
    cache.put(b"a", 1.0)
    cache.put(b"b", 2.0)
    assert cache.get(b"a") == 1.0
    cache.put(b"c", 3.0)
    assert (cache.get(b"a"), cache.get(b"b"), cache.get(b"c")) == (1.0, None, 3.0)
    assert len(cache) == 2


def test_a_cache_without_room_keeps_nothing() -> None:
    cache = ResultCache(0)
    cache.put(b"a", 1.0)
    assert cache.get(b"a") is None
