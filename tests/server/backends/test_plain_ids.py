"""Ids of a whole call at once give what each would give alone, and whatever is unusual is left to the closer look."""

import numpy as np
import pytest

from rm_server.backends.items import ChatMessage, Content
from rm_server.backends.tokenization.plain_ids import plain_ids


def test_items_are_what_the_pairs_say() -> None:
    items = plain_ids([((1, 2), (3,)), ("", (4, 5)), ((), (99,))], 100, 3)
    assert items is not None
    assert [item.ids.tolist() for item in items] == [[1, 2, 3], [4, 5], [99]]
    assert [item.completion_start for item in items] == [2, 0, 0]
    assert [item.num_tokens for item in items] == [3, 2, 1]
    assert all(item.ids.dtype == np.int32 and not item.truncated for item in items)


@pytest.mark.parametrize(
    "pair",
    [
        pytest.param(((1,), ()), id="no completion"),
        pytest.param(((1,), (100,)), id="outside of the vocabulary"),
        pytest.param(((1,), (-1,)), id="negative"),
        pytest.param(((1,), (2**40,)), id="too large for an id"),
        pytest.param(((1,), (1.5, 2)), id="no whole number"),
        pytest.param(((1, 2), (3, 4)), id="too long"),
        pytest.param(("text", (1,)), id="prompt is text"),
        pytest.param(((1,), "text"), id="completion is text"),
        pytest.param(((ChatMessage("user", "x"),), (1,)), id="prompt is messages"),
    ],
)
def test_one_unusual_item_sends_all_to_the_closer_look(pair: tuple[Content, Content]) -> None:
    assert plain_ids([((1,), (2,)), pair], 100, 3) is None


def test_without_a_limit_any_length_is_taken() -> None:
    items = plain_ids([((), tuple(range(5000)))], 5000, 0)
    assert items is not None
    assert items[0].num_tokens == 5000
