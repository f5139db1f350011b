"""Nothing is lost between the server's types and the contract's messages, and no number is made up."""

from __future__ import annotations

import typing
from dataclasses import replace
from typing import Any

import pytest
from rm_api.v1 import errors_pb2, models_pb2, scoring_pb2
from score_answers import answer

from rm_server.api.convert import TRANSFORMS, TRUNCATIONS, content, score_call, score_response
from rm_server.api.describe import STATES
from rm_server.backends.items import ChatMessage, RenderedText
from rm_server.engine.lifecycle import State
from rm_server.errors import InvalidRequest, ItemTooLong
from rm_server.registry import manifest
from rm_server.registry.records import CalibrationRecord
from rm_server.scoring.evaluation import Component
from rm_server.scoring.scorer import ItemAnswer


def test_every_word_has_its_enum_value() -> None:
    assert set(TRANSFORMS) == set(manifest.TRANSFORMS)
    assert {*TRANSFORMS.values(), 0} == set(scoring_pb2.Transform.values())
    assert set(TRUNCATIONS) == set(scoring_pb2.Truncation.values())
    assert set(TRUNCATIONS.values()) == {*manifest.TRUNCATION_RULES, None}
    assert set(STATES) == set(typing.get_args(State))
    assert {*STATES.values(), 0} == set(models_pb2.VersionState.values())


def test_each_kind_of_content() -> None:
    message = scoring_pb2.Message(role="user", content="Hi")
    assert content(scoring_pb2.Content(text="Hi")) == "Hi"
    assert content(scoring_pb2.Content(messages={"messages": [message]})) == (ChatMessage("user", "Hi"),)
    assert content(scoring_pb2.Content(token_ids={"ids": [1, 2**32 - 1]})) == (1, 2**32 - 1)
    assert content(scoring_pb2.Content()) == ""
    assert content(scoring_pb2.Content(token_ids={})) == ()


def rendered(prompt: scoring_pb2.Content, *completions: scoring_pb2.Content) -> scoring_pb2.ScoreRequest:
    group = scoring_pb2.Group(prompt=prompt, completions=completions)
    return scoring_pb2.ScoreRequest(model="m", groups=[group], options=scoring_pb2.ScoreOptions(rendered=True))


def test_a_rendered_text_stands_alone_and_knows_its_prompt() -> None:
    text = scoring_pb2.Content(text="Hi there")
    for prompt, parts in (
        (scoring_pb2.Content(text="Hi"), ("Hi", " there")),
        (scoring_pb2.Content(), ("", "Hi there")),
    ):
        ((alone, (completion,)),) = score_call(rendered(prompt, text), "r").groups
        assert (alone, completion) == ("", "Hi there")
        assert isinstance(completion, RenderedText)
        assert completion.parts == parts


@pytest.mark.parametrize(
    ("prompt", "completion", "says"),
    [
        ({"text": "Ho"}, {"text": "Hi there"}, "does not begin with its prompt"),
        ({"token_ids": {"ids": [1]}}, {"token_ids": {"ids": [1, 2]}}, "is for text, and token_ids came"),
        ({}, {"messages": {"messages": [{"role": "user", "content": "Hi"}]}}, "is for text, and messages came"),
    ],
)
def test_what_is_no_rendered_text_is_refused(prompt: Any, completion: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        score_call(rendered(scoring_pb2.Content(**prompt), scoring_pb2.Content(**completion)), "r")


def test_every_option_reaches_the_scorer() -> None:
    request = scoring_pb2.ScoreRequest(
        model="m@3",
        groups=[
            scoring_pb2.Group(
                prompt={"text": "p"}, completions=[scoring_pb2.Content(text="a"), scoring_pb2.Content(text="b")]
            )
        ],
        run="exp-17",
        options=scoring_pb2.ScoreOptions(
            calibrated=True, truncation="TRUNCATION_KEEP_END", bypass_cache=True, expected_digest="d", priority=-10
        ),
    )
    call = score_call(request, "r-1")
    assert (call.selector, call.run, call.request_id) == ("m@3", "exp-17", "r-1")
    assert call.groups == (("p", ("a", "b")),)
    assert (call.calibrated, call.truncation, call.bypass_cache) == (True, "keep_end", True)
    assert (call.expected_digest, call.priority) == ("d", -10)


@pytest.mark.parametrize("options", [{"priority": 11}, {"priority": -11}, {"truncation": 9}], ids=str)
def test_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(options))):
        score_call(scoring_pb2.ScoreRequest(options=scoring_pb2.ScoreOptions(**options)), "r")  # type: ignore[arg-type]


def test_an_answer_becomes_a_message() -> None:
    given = replace(
        answer(0.25, ItemTooLong("Too long.")),
        calibration=CalibrationRecord("c" * 64, 2.0, -1.0),
        arm="b",
        items=[
            ItemAnswer(0.25, None, True, 9, (Component("grammar", 0.5, 0.5, 2, "e" * 64),)),
            ItemAnswer(None, ItemTooLong("Too long."), False, 600),
        ],
    )
    message = score_response(given)
    assert (message.model, message.version, message.label, message.arm) == ("m", 1, "stable", "b")
    assert (message.calibration.digest, message.calibration.gain, message.calibration.bias) == ("c" * 64, 2.0, -1.0)
    scored, failed = message.results
    assert (scored.score.value, scored.truncated, scored.num_tokens) == (0.25, True, 9)
    (component,) = scored.score.components
    assert (component.name, component.value, component.weight, component.version) == ("grammar", 0.5, 0.5, 2)
    assert failed.WhichOneof("outcome") == "error"
    assert failed.error.reason == errors_pb2.ERROR_REASON_ITEM_TOO_LONG
    assert message.timings.total_seconds == pytest.approx(0.006)


def test_an_item_without_score_or_error_is_a_defect_and_no_zero() -> None:
    message = score_response(replace(answer(), items=[ItemAnswer(None, None)]))
    assert message.results[0].WhichOneof("outcome") == "error"
    assert message.results[0].error.reason == errors_pb2.ERROR_REASON_INTERNAL


def test_a_score_of_zero_is_a_score() -> None:
    message = score_response(answer(0.0))
    assert message.results[0].WhichOneof("outcome") == "score"
    assert message.results[0].HasField("score")
