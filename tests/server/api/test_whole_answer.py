"""All scores, or one error that names the items that have none."""

from __future__ import annotations

import pytest
from score_answers import answer

from rm_server.api.whole_answer import all_values
from rm_server.errors import ItemTooLong, QueueFull, RmError, WorkerFailed


def test_scores_come_in_order() -> None:
    assert all_values(answer(0.5, 0.0, -1.5), "query") == [0.5, 0.0, -1.5]
    assert all_values(answer(), "query") == []


def test_each_failed_item_is_named() -> None:
    with pytest.raises(WorkerFailed, match=r"^query\[1\]: It died\. query\[2\]: So did it\.$"):
        all_values(answer(0.5, WorkerFailed("It died."), WorkerFailed("So did it.")), "query")


def test_of_many_the_first_are_named() -> None:
    with pytest.raises(ItemTooLong) as caught:
        all_values(answer(*[ItemTooLong("Too long.")] * 8), "item")
    assert "item[4]: Too long. … and 3 more items" in caught.value.message
    assert "item[5]" not in caught.value.message


@pytest.mark.parametrize("errors", [(QueueFull("full"), ItemTooLong("long")), (ItemTooLong("long"), QueueFull("full"))])
def test_what_no_repetition_helps_decides(errors: tuple[RmError, ...]) -> None:
    """Or a client would repeat the call, and fail again."""
    with pytest.raises(ItemTooLong) as caught:
        all_values(answer(*errors), "item")
    assert caught.value.retry_after_s is None
    assert "full" in caught.value.message


def test_the_hint_when_to_come_back_is_kept() -> None:
    with pytest.raises(QueueFull) as caught:
        all_values(answer(QueueFull("full", retry_after_s=2.5)), "item")
    assert caught.value.retry_after_s == 2.5
