"""The fields of rows: contents of every form, names, lengths and keys."""

from __future__ import annotations

import pytest

from rm_server.backends.items import ChatMessage
from rm_server.training.data_files import BadData
from rm_server.training.rows import content_of, key_of, length_of, name_of


def test_contents_are_text_messages_or_ids() -> None:
    row = {"text": "hi", "chat": [{"role": "user", "content": "hi", "tool_calls": None}], "ids": [1, 2]}
    assert content_of(row, "text", "f:1") == "hi"
    assert content_of(row, "chat", "f:1") == (ChatMessage("user", "hi"),)
    assert content_of(row, "ids", "f:1") == (1, 2)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"other": 1}, "f:1 has no `chosen`; it has 'other'"),
        ({"chosen": None}, "f:1: `chosen` is null"),
        ({"chosen": ""}, "`chosen` is empty"),
        ({"chosen": []}, "`chosen` is empty"),
        ({"chosen": 3}, "must be text"),
        ({"chosen": [1, True]}, "must be text"),
        ({"chosen": [{"role": "user"}]}, "needs `role` and `content`"),
        ({"chosen": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]}, "has `tool_calls`, which"),
    ],
)
def test_a_content_of_another_form_is_refused(row: dict[str, object], complaint: str) -> None:
    with pytest.raises(BadData, match=complaint):
        content_of(row, "chosen", "f:1")


def test_names_are_text_or_whole_numbers() -> None:
    assert [name_of({"group": value}, "group", "f:1") for value in ("P1", 7, None)] == ["P1", "7", None]
    with pytest.raises(BadData, match="`group` must be text or a whole number"):
        name_of({"group": 1.5}, "group", "f:1")


def test_lengths_count_characters_of_the_words_said() -> None:
    assert length_of("four") == 4
    assert length_of((ChatMessage("assistant", "four"), ChatMessage("user", "six"))) == 7
    assert length_of((5, 6, 7)) == 3


def test_keys_differ_where_contents_do() -> None:
    contents = ["1", (1,), (ChatMessage("user", "1"),), (ChatMessage("system", "1"),), "\ud800"]
    assert len({key_of(content) for content in contents}) == len(contents)  # type: ignore[arg-type]
