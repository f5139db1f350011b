"""The JSON of OpenRLHF and vLLM: what they send, what they get, and what is refused rather than guessed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from score_answers import answer

from rm_server.api.http_shapes import (
    openrlhf_groups,
    openrlhf_response,
    parse_json,
    vllm_groups,
    vllm_response,
)
from rm_server.backends.items import ChatMessage
from rm_server.errors import InvalidRequest, ItemTooLong, MalformedRequest
from rm_server.scoring.evaluation import Component


def any_number(num_items: int) -> None:
    """Refuses none."""


def test_openrlhf_sends_whole_texts_and_gets_a_number_each() -> None:
    body = {"query": ["Hi</s>there", "Oh"], "prompts": ["Hi", "Oh"], "labels": [None, 3]}
    assert openrlhf_groups(body, any_number) == [("", ("Hi</s>there",)), ("", ("Oh",))]
    response = openrlhf_response(answer(0.25, -1.5))
    assert response["rewards"] == response["scores"] == [0.25, -1.5]
    assert (response["model"], response["version"], response["digest"]) == ("m", 1, "d" * 64)


def test_openrlhf_logs_the_version_and_what_was_cut() -> None:
    scored = answer(0.25, 1.5)
    cut = replace(scored, version=3, items=[scored.items[0], replace(scored.items[1], truncated=True)])
    assert openrlhf_response(cut)["extra_logs"] == {"rm_version": [3.0, 3.0], "rm_truncated": [0.0, 1.0]}


def test_openrlhf_logs_a_composite_s_components() -> None:
    parts = [(0.5, -0.25), (1.5, 0.0)]
    scored = answer(0.25, 1.5)
    items = [
        replace(item, components=(Component("grammar", grammar, 1.0), Component("length", length, 1.0)))
        for item, (grammar, length) in zip(scored.items, parts, strict=True)
    ]
    logs = openrlhf_response(replace(scored, items=items))["extra_logs"]
    assert logs["component/grammar"] == [0.5, 1.5]
    assert logs["component/length"] == [-0.25, 0.0]
    assert not any(name.startswith("component/") for name in openrlhf_response(answer(0.25))["extra_logs"])


def test_openrlhf_sends_empty_lists_to_servers_without_a_share() -> None:
    assert openrlhf_groups({"query": [], "prompts": [], "labels": []}, any_number) == []
    assert openrlhf_response(answer())["rewards"] == []


def test_a_failed_item_fails_the_call_and_is_named() -> None:
    broken = answer(0.5, ItemTooLong("600 tokens, the limit is 512."))
    with pytest.raises(ItemTooLong, match=r"query\[1\]: 600 tokens, the limit is 512\."):
        openrlhf_response(broken)
    with pytest.raises(ItemTooLong, match=r"input\[1\]"):
        vllm_response(broken, "r")


@pytest.mark.parametrize(
    ("value", "groups"),
    [
        ("Hi", [("", ("Hi",))]),
        (["Hi", "Oh"], [("", ("Hi",)), ("", ("Oh",))]),
        ([1, 2], [("", ((1, 2),))]),
        ([[1, 2], [3]], [("", ((1, 2),)), ("", ((3,),))]),
        ([], []),
    ],
)
def test_vllm_takes_a_text_ids_or_lists_of_them(value: Any, groups: Any) -> None:
    assert vllm_groups({"model": "any", "input": value, "use_activation": False}, any_number) == groups


def test_vllm_takes_messages() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Oh"}]
    assert vllm_groups({"messages": messages}, any_number) == [
        ("", ((ChatMessage("user", "Hi"), ChatMessage("assistant", "Oh")),))
    ]


def test_verl_reads_the_last_probability_of_the_last_input() -> None:
    response = vllm_response(answer(2.5), "r-1")
    assert response["data"][-1]["probs"][-1] == 2.5
    assert response["data"] == [{"index": 0, "label": None, "probs": [2.5], "num_classes": 1}]
    assert (response["id"], response["object"]) == ("classify-r-1", "list")
    assert response["usage"] == {"prompt_tokens": 7, "total_tokens": 7, "completion_tokens": 0}


@pytest.mark.parametrize(
    "extra",
    [
        {"use_activation": True},
        {"activation": True},
        {"softmax": True},
        {"truncate_prompt_tokens": 10},
        {"chat_template": "x"},
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_what_would_change_the_score_is_refused(extra: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=f"`{next(iter(extra))}`"):
        vllm_groups({"input": "Hi", **extra}, any_number)


@pytest.mark.parametrize("value", [None, 3, {"a": 1}, [None], [1, "a"], [[]], [[1.5]], [["a"]]], ids=repr)
def test_other_inputs_are_refused(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="expected"):
        vllm_groups({"input": value}, any_number)


@pytest.mark.parametrize(
    "value", ["Hi", {"role": "user", "content": "Hi"}, ["Hi"], [{"role": "user"}], [{"content": ["Hi"]}]], ids=repr
)
def test_other_messages_are_refused(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="expected"):
        vllm_groups({"messages": value}, any_number)


@pytest.mark.parametrize("value", [None, "text", [1], [None], [["a"]]], ids=repr)
def test_other_queries_are_refused(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="expected"):
        openrlhf_groups({"query": value}, any_number)


def test_what_is_wrong_is_shown_however_deep_it_is() -> None:
    nested: list[Any] = []
    for _ in range(10_000):
        nested = [nested]
    with pytest.raises(InvalidRequest, match=r"query\[0\] is \[{80}…; a text was expected"):
        openrlhf_groups({"query": [nested]}, any_number)


@pytest.mark.parametrize("raw", [b"", b"{", b'{"query": "\xff"}', b"[1]", b"null", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_malformed(raw: bytes) -> None:
    with pytest.raises(MalformedRequest):
        parse_json(raw)


def test_half_a_surrogate_pair_is_no_text() -> None:
    body = parse_json(rb'{"query": ["ok", "\ud83d"]}')
    with pytest.raises(MalformedRequest, match=r"query\[1\]"):
        openrlhf_groups(body, any_number)
