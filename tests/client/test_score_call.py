from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rm_api.v1 import scoring_pb2

from ppo_client.client.content import to_items
from ppo_client.client.errors import InvalidRequest
from ppo_client.client.score_call import ScoreCall, split

texts = st.text(alphabet="abc", max_size=3)


@given(pairs=st.lists(st.tuples(texts, texts), max_size=30), max_items=st.integers(1, 9), max_bytes=st.integers(1, 200))
def test_whatever_is_sent_every_item_arrives_once_under_its_own_prompt(
    pairs: list[tuple[str, str]], max_items: int, max_bytes: int
) -> None:
    items = to_items([prompt for prompt, _ in pairs], [completion for _, completion in pairs])
    arrived: dict[int, tuple[str, str]] = {}
    for part in split(items, max_items=max_items, max_bytes=max_bytes):
        assert 1 <= len(part) <= max_items
        request = ScoreCall("m").request(part, "id")
        assert len(part) == 1 or request.ByteSize() <= max_bytes + len("mid") + 8
        flat = [(group.prompt.text, each.text) for group in request.groups for each in group.completions]
        assert len({prompt for prompt, _ in flat}) == len(request.groups), "a prompt travelled twice"
        arrived |= dict(zip([item.place for item in part], flat, strict=True))
    assert arrived == dict(enumerate(pairs))


def test_an_item_that_is_too_large_goes_alone() -> None:
    items = to_items(["p"] * 3, ["x", "y" * 1000, "z"])
    assert [[item.place for item in part] for part in split(items, max_items=9, max_bytes=100)] == [[0], [1], [2]]


def test_the_options_travel() -> None:
    call = ScoreCall("m@2", "run", True, "keep_end", -3, "d" * 64, True)
    request = call.request(to_items(["p"], ["c"]), "id-1")
    assert (request.model, request.run, request.request_id) == ("m@2", "run", "id-1")
    assert request.options == scoring_pb2.ScoreOptions(
        calibrated=True,
        truncation=scoring_pb2.TRUNCATION_KEEP_END,
        bypass_cache=True,
        expected_digest="d" * 64,
        priority=-3,
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": ""},
        {"model": None},
        {"run": 17},
        {"expected_digest": 17},
        {"truncation": "left"},
        {"priority": 11},
        {"priority": -11},
        {"priority": 0.5},
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(wrong))):
        ScoreCall(**({"model": "m"} | wrong))
