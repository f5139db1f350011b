from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from ppo_client.client.content import is_empty, to_items
from ppo_client.client.errors import InvalidRequest, InvalidTokenIds, MalformedRequest, UnsupportedContent


def kinds(prompt: Any, completion: Any) -> tuple[str | None, str | None]:
    (item,) = to_items([prompt], [completion])
    return item.prompt.WhichOneof("content"), item.completion.WhichOneof("content")


def test_text_messages_and_ids() -> None:
    assert kinds("a", "b") == ("text", "text")
    assert kinds([1, 2], [3]) == ("token_ids", "token_ids")
    message = {"role": "user", "content": "hi"}
    assert kinds([message], [message]) == ("messages", "messages")
    assert kinds(({"role": "user", "content": ""},), [message]) == ("messages", "messages")
    assert kinds([message], "b") == ("messages", "text")
    assert kinds("a", [message]) == ("text", "messages")


@pytest.mark.parametrize(
    "row",
    [
        [5, 0, 4294967295],
        (5, 0, 4294967295),
        np.array([5, 0, 4294967295]),
        torch.tensor([5, 0, 4294967295]),
        [np.int64(5), np.uint8(0), 4294967295],
        range(5, 6),
    ],
)
def test_rows_of_ids_in_every_form(row: Any) -> None:
    (item,) = to_items([[1]], [row])
    assert list(item.completion.token_ids.ids) in ([5, 0, 4294967295], [5])


def test_messages_from_an_array_as_parquet_files_give_them() -> None:
    row = np.array([{"role": "user", "content": "hi", "name": None}], dtype=object)
    (item,) = to_items([row], [[{"role": "assistant", "content": "ho"}]])
    assert item.prompt.messages.messages[0].content == "hi"


def test_texts_in_an_array_or_a_series() -> None:
    texts = ["a", "b"]
    for values in (np.array(texts), np.array(texts, dtype=object), pd.Series(texts), pd.Series(texts, dtype="string")):
        assert to_items(values, values) == to_items(texts, texts)
    assert to_items(np.array([]), pd.Series([], dtype=str)) == []
    with pytest.raises(UnsupportedContent, match="completion 1 is float"):
        to_items(texts, pd.Series(["a", np.nan], dtype=object))


def test_the_empty_string_is_a_text_and_an_empty_prompt_is_nothing() -> None:
    assert kinds("", "b") == ("text", "text")
    assert kinds([], "b") == (None, "text")
    assert kinds([], [3]) == (None, "token_ids")


def test_a_policy_that_stopped_at_once_wrote_no_tokens_which_is_a_completion() -> None:
    assert kinds([1], []) == ("token_ids", "token_ids")
    assert kinds([1], np.array([], dtype=int)) == ("token_ids", "token_ids")


def test_equal_prompts_are_brought_together_and_share_one_message() -> None:
    items = to_items(["a", "b", "a", "c", "b"], ["0", "1", "2", "3", "4"])
    assert [item.place for item in items] == [0, 2, 1, 4, 3]
    assert items[0].prompt is items[1].prompt
    assert items[2].prompt is items[3].prompt
    assert [item.completion.text for item in items] == ["0", "2", "1", "4", "3"]


def test_equal_ids_in_different_forms_are_one_prompt_and_text_is_another() -> None:
    items = to_items([[1, 2], np.array([1, 2]), torch.tensor([1, 2])], [[3], [4], [5]])
    assert len({id(item.prompt) for item in items}) == 1
    assert len({id(item.prompt) for item in to_items(["", []], ["a", "b"])}) == 2


def test_rendered_texts_travel_whole() -> None:
    items = to_items(["a", "a", ""], ["b", "c", "d"], are_rendered=True)
    assert [(item.prompt.text, item.completion.text) for item in items] == [("a", "ab"), ("a", "ac"), ("", "d")]
    with pytest.raises(UnsupportedContent, match="item 1: rendered is for text, and token_ids came"):
        to_items(["a", [1]], ["b", [2]], are_rendered=True)


def test_no_items_are_fine() -> None:
    assert to_items([], []) == []


@pytest.mark.parametrize(
    ("prompts", "completions", "cls", "says"),
    [
        (["a"], ["b", "c"], InvalidRequest, "1 prompts and 2 completions"),
        ("a", ["b"], InvalidRequest, "prompts must be a list, got str"),
        (["a"], "b", InvalidRequest, "completions must be a list, got str"),
        (["a"], None, InvalidRequest, "completions must be a list, got NoneType"),
        ({"a": 1}, ["a"], InvalidRequest, "prompts must be a list, got dict"),
        (torch.zeros(2, 3, dtype=torch.long), [[1], [1]], InvalidRequest, "without their padding"),
        (np.zeros((2, 3), dtype=int), [[1], [1]], InvalidRequest, "without their padding"),
        (["a"], [None], UnsupportedContent, "completion 0 is None"),
        (["a"], [b"b"], UnsupportedContent, "completion 0 is bytes"),
        (["a"], [7], UnsupportedContent, "completion 0 is int"),
        (["a"], [{"role": "user", "content": "x"}], UnsupportedContent, "completion 0 is dict"),
        (["a", "a"], ["b", [1]], UnsupportedContent, "item 1: the prompt is text and the completion token_ids"),
        ([[{"role": "user", "content": "a"}]], [[1]], UnsupportedContent, "token ids are for both or for neither"),
        ([[1]], [["b"]], InvalidTokenIds, "completion 0 is no list of token ids"),
        ([[1]], [[1.0]], InvalidTokenIds, "float"),
        ([[1]], [torch.tensor([1.5])], InvalidTokenIds, "float"),
        ([[1]], [[-1]], InvalidTokenIds, "-1"),
        ([[1]], [[2**32]], InvalidTokenIds, "4294967296"),
        ([[1]], [[1, None]], InvalidTokenIds, "NoneType"),
        ([[1]], [torch.tensor([True, False])], InvalidTokenIds, "was a mask passed"),
        ([[1]], [torch.zeros(2, 3, dtype=torch.long)], InvalidTokenIds, "list"),
        ([[1]], [torch.tensor(3)], UnsupportedContent, "completion 0 is int"),
        (["a"], ["\ud800"], MalformedRequest, "completion 0 is no valid Unicode"),
        (["\ud800"], ["a"], MalformedRequest, "prompt 0 is no valid Unicode"),
        ([[{"role": "user", "content": "\ud800"}]], [[]], MalformedRequest, "prompt 0, message 0"),
        ([[{"role": "user"}]], [[]], UnsupportedContent, "fields \\['role'\\]"),
        ([[{"role": "user", "content": "x", "tool_calls": [1]}]], [[]], UnsupportedContent, "tool_calls"),
        ([[{"role": "user", "content": [{"type": "image"}]}]], [[]], UnsupportedContent, "both must be text"),
        ([[{"role": 1, "content": "x"}]], [[]], UnsupportedContent, "both must be text"),
        ([[{"role": "user", "content": "x"}, "y"]], [[]], UnsupportedContent, "message 1 is str"),
    ],
)
def test_what_cannot_be_sent_is_refused_by_name_and_place(
    prompts: Any, completions: Any, cls: type[InvalidRequest], says: str
) -> None:
    with pytest.raises(cls, match=says) as caught:
        to_items(prompts, completions)
    assert type(caught.value) is cls


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("", True),
        (" ", False),
        ([], True),
        ([0], False),
        ([{"role": "assistant", "content": ""}], True),
        ([{"role": "assistant", "content": "", "tool_calls": None}], True),
        ([{"role": "assistant", "content": "", "tool_calls": [{"type": "function"}]}], False),
        ([{"role": "assistant", "content": "x"}], False),
        ([{"role": "user", "content": ""}, {"role": "assistant", "content": "x"}], False),
        (None, False),
    ],
)
def test_what_is_empty(completion: Any, expected: bool) -> None:
    assert is_empty(completion) is expected
