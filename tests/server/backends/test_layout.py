"""Flat batches come in few sizes, and what fills them up touches no item."""

from __future__ import annotations

import numpy as np
import pytest

from rm_server.backends.torch.layout import SharedAttention, SharedPrefix, filled_size, filled_up, lay_out


def test_sizes_are_few_and_little_is_for_nothing() -> None:
    sizes = [filled_size(number) for number in range(1, 4097)]
    assert all(number <= size < number + 64 for number, size in enumerate(sizes, 1))
    assert all(filled_size(size) == size for size in sizes)
    assert len(set(sizes)) == 32 + 8 + (4096 - 512) // 64 == 96
    assert all(size <= 1.13 * number for number, size in enumerate(sizes, 1) if number > 100)


@pytest.mark.parametrize("has_types", [False, True])
def test_what_fills_up_is_the_last_token_and_belongs_to_nothing(has_types: bool) -> None:
    ids = np.arange(1, 12, dtype=np.int32)
    plain = lay_out(ids, np.array([4, 7], np.int32), ids % 2 if has_types else None)
    filled = filled_up(plain)
    assert filled.ids.tolist() == [*ids, 11, 11, 11, 11, 11]
    assert filled.positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 0, 0, 0, 0, 0]
    assert (filled.segments, filled.items, filled.shared) == (plain.segments, plain.items, plain.shared)
    assert (filled.type_ids is not None) is has_types
    assert filled.type_ids is None or len(filled.type_ids) == 16
    assert filled_up(filled) is filled


def test_what_the_tokens_see_that_are_read() -> None:
    ids, lengths = np.arange(20, dtype=np.int32), np.array([4, 7, 9], np.int32)
    plain = lay_out(ids, lengths)
    assert (plain.read_tokens("first"), plain.read_tokens("last")) == ([0, 4, 11], [3, 10, 19])
    assert plain.read_keys("first", None) == plain.read_keys("last", None) == [((0, 4),), ((4, 11),), ((11, 20),)]
    assert plain.read_keys("first", 5) == [((0, 4),), ((4, 9),), ((11, 16),)]
    assert plain.read_keys("last", 5) == [((0, 4),), ((6, 11),), ((15, 20),)]


def test_what_they_see_of_shared_prefixes() -> None:
    lengths = np.array([5, 6, 4, 5, 5], np.int32)
    layout = lay_out(np.arange(25, dtype=np.int32), lengths, None, [SharedPrefix(0, 2, 3), SharedPrefix(3, 2, 4)])
    first, second = (0, 3), (12, 16)
    own = [(3, 5), (5, 8), (8, 12), (16, 17), (17, 18)]
    assert layout.items == tuple(own)
    assert layout.segments == (first, *own[:3], second, *own[3:])
    assert layout.shared == (SharedAttention((3, 8), first), SharedAttention((16, 18), second))
    assert layout.ids.tolist() == [*range(5), 8, 9, 10, *range(11, 20), 24]
    assert layout.positions.tolist() == [*range(5), 3, 4, 5, *range(4), *range(5), 4]
    assert layout.read_tokens("last") == [4, 7, 11, 16, 17]
    expected = [(first, own[0]), (first, own[1]), (own[2],), (second, own[3]), (second, own[4])]
    assert layout.read_keys("last", None) == layout.read_keys("last", 9) == expected
