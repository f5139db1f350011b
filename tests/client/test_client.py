"""What a scoring call does, over a socket, for the waiting client and the awaiting one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from rm_api.v1 import scoring_pb2

from ppo_client import errors
from ppo_client.client.scores import Calibration

from .conftest import Connect, score
from .fake_server import (
    DIGESTS,
    Behaviour,
    FakeServer,
    as_version,
    change,
    fail,
    fail_items,
    usual,
    wait_until_cancelled,
)

Code = grpc.StatusCode
REFUSED = fail(Code.UNAVAILABLE, "DRAINING")


def test_scores_come_in_the_order_of_the_completions(server: FakeServer, connect: Connect) -> None:
    client = connect(server.address)
    scores = client.score("length", prompts=["a", "b", "a", "b"], completions=["1", "22", "333", "4444"])
    assert scores.values == [1.0, 2.0, 3.0, 4.0]
    assert (scores.model, scores.version, scores.digest) == ("length", 1, DIGESTS[1])
    assert scores.truncated == [False] * 4
    assert scores.num_tokens == [1, 2, 3, 4]
    assert scores.components == [[], [], [], []]
    assert (scores.transform, scores.label, scores.calibration) == ("rule", None, None)
    (request,) = server.requests
    assert [(group.prompt.text, len(group.completions)) for group in request.groups] == [("a", 2), ("b", 2)]


def test_no_completions_have_no_scores_and_the_reply_still_says_from_what(server: FakeServer, connect: Connect) -> None:
    scores = score(connect(server.address))
    assert (scores.values, scores.version) == ([], 1)


@pytest.mark.parametrize(
    ("prompt", "completion", "value"),
    [
        ("a", "four", 4.0),
        ([1], np.array([2, 3]), 5.0),
        ([{"role": "user", "content": "x"}], [{"role": "assistant", "content": "seven c"}], 7.0),
    ],
)
def test_every_kind_of_content(
    server: FakeServer, connect: Connect, prompt: Any, completion: Any, value: float
) -> None:
    assert connect(server.address).score("length", prompts=[prompt], completions=[completion]).values == [value]


def test_run_and_options_and_token_travel(server: FakeServer, connect: Connect) -> None:
    client = connect(server.address, run="exp-1", token="secret")
    score(client, "x", truncation="refuse", priority=2, bypass_cache=True)
    score(client, "x", run="exp-2")
    first, second = server.seen
    assert (first.request.run, second.request.run) == ("exp-1", "exp-2")
    assert first.request.options.truncation == scoring_pb2.TRUNCATION_REFUSE
    assert first.request.options.priority == 2
    assert first.request.options.bypass_cache
    assert first.metadata["authorization"] == "Bearer secret"
    assert str(first.metadata["user-agent"]).startswith("ppo-client/")
    assert first.request.request_id != second.request.request_id


def test_calibrated_scores_name_their_calibration(server: FakeServer, connect: Connect) -> None:
    scores = score(connect(server.address), "xxx", calibrated=True)
    assert scores.values == [30.0]
    assert scores.calibration == Calibration("c" * 64, 10.0, 0.0)


def test_components_and_labels_and_truncation_are_handed_on(server: FakeServer, connect: Connect) -> None:
    def edit(response: scoring_pb2.ScoreResponse) -> None:
        response.label = "stable"
        response.results[0].truncated = True
        response.results[0].score.components.add(name="grammar", value=0.5, weight=2.0, version=3, digest="d")

    server.will(change(edit))
    scores = score(connect(server.address), "x", "y")
    assert scores.label == "stable"
    assert scores.truncated == [True, False]
    assert [[part.name for part in parts] for parts in scores.components] == [["grammar"], []]


def test_wrong_arguments_are_raised_before_anything_is_sent(server: FakeServer, connect: Connect) -> None:
    client = connect(server.address)
    with pytest.raises(errors.InvalidRequest, match="1 prompts and 0 completions"):
        client.score("length", prompts=["a"], completions=[])
    for timeout_s in (0, float("nan"), float("inf")):
        with pytest.raises(errors.InvalidRequest, match="timeout_s"):
            score(client, "x", timeout_s=timeout_s)
    with pytest.raises(TypeError, match=r"score\(\) has no option 'calibrate'; it has run, .*mean 'calibrated'\?"):
        score(client, "x", calibrate=True)
    assert server.seen == []


def test_a_deadline_that_never_comes(connect: Connect, server: FakeServer) -> None:
    assert len(score(connect(server.address), "x", timeout_s=1e10)) == 1


# Retries


@pytest.mark.parametrize(
    "failure",
    [
        fail(Code.UNAVAILABLE, "DRAINING"),
        fail(Code.UNAVAILABLE, "WORKER_FAILED"),
        fail(Code.UNAVAILABLE, "CATALOG_UNAVAILABLE"),
        fail(Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after_s=0.01),
        fail(Code.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY"),
        fail(Code.UNAVAILABLE),
        fail(Code.CANCELLED),
        fail(Code.RESOURCE_EXHAUSTED, metadata=(("grpc-retry-pushback-ms", "5"),)),
    ],
)
def test_what_may_pass_is_sent_again(server: FakeServer, connect: Connect, failure: Behaviour) -> None:
    server.will(failure, failure)
    assert score(connect(server.address), "xx").values == [2.0]
    assert len(server.requests) == 3
    assert server.requests[0] == server.requests[2]


@pytest.mark.parametrize(
    ("failure", "cls"),
    [
        (fail(Code.INVALID_ARGUMENT, "INVALID_SELECTOR"), errors.InvalidSelector),
        (fail(Code.NOT_FOUND, "MODEL_NOT_FOUND"), errors.ModelNotFound),
        (fail(Code.FAILED_PRECONDITION, "VERSION_NOT_LOADED"), errors.VersionNotLoaded),
        (fail(Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"), errors.DeadlineExceeded),
        (fail(Code.FAILED_PRECONDITION, "VERSION_CHANGED"), errors.VersionChanged),
        (fail(Code.UNAUTHENTICATED, "UNAUTHENTICATED"), errors.Unauthenticated),
        (fail(Code.INTERNAL, "INTERNAL"), errors.ServerDefect),
        (fail(Code.UNKNOWN), errors.ServerDefect),
    ],
)
def test_what_cannot_pass_is_raised_at_once(
    server: FakeServer, connect: Connect, failure: Behaviour, cls: type[Exception]
) -> None:
    server.will(failure)
    with pytest.raises(cls, match="as told") as caught:
        score(connect(server.address), "x")
    assert len(server.requests) == 1
    error = caught.value
    assert isinstance(error, errors.RewardClientError)
    assert (error.target, error.num_attempts) == (server.address, 1)
    assert error.request_id == server.requests[0].request_id


def test_work_that_keeps_breaking_workers_is_given_up(server: FakeServer, connect: Connect) -> None:
    server.always = fail(Code.UNAVAILABLE, "WORKER_FAILED")
    with pytest.raises(errors.WorkerFailed, match="after 3 attempts"):
        score(connect(server.address), "x")
    assert len(server.requests) == 3


def test_the_last_failure_is_raised_when_its_hint_lies_beyond_the_deadline(
    server: FakeServer, connect: Connect
) -> None:
    server.will(REFUSED, fail(Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after_s=3600))
    with pytest.raises(errors.QueueFull) as caught:
        score(connect(server.address), "x")
    assert caught.value.retry_after_s == 3600
    assert isinstance(caught.value.__cause__, errors.Draining)


def test_a_deadline_that_passes_is_an_error_and_reaches_the_server(server: FakeServer, connect: Connect) -> None:
    server.will(wait_until_cancelled)
    with pytest.raises(errors.DeadlineExceeded, match=r"longer timeout_s.*after 0\.2 s") as caught:
        score(connect(server.address), "x", timeout_s=0.2)
    assert caught.value.timeout_s == 0.2
    assert server.cancelled.wait(20)
    assert len(server.requests) == 1


def test_a_deadline_that_passes_in_a_later_attempt_names_the_limit_of_the_whole_call(
    server: FakeServer, connect: Connect
) -> None:
    server.will(REFUSED, wait_until_cancelled)
    with pytest.raises(errors.DeadlineExceeded, match=r"after 2 attempts in 0\.5 s"):
        score(connect(server.address), "x", timeout_s=0.5)


# Items


def test_items_without_a_score_are_an_error_that_has_the_other_scores(server: FakeServer, connect: Connect) -> None:
    server.will(fail_items(1, reason="ITEM_TOO_LONG", message="9000 tokens, 512 is the limit"))
    with pytest.raises(errors.ItemsFailed, match=r"1 of 3 completions: \(1\) ItemTooLong: 9000 tokens") as caught:
        score(connect(server.address), "a", "bb", "ccc")
    assert caught.value.scores == {0: 1.0, 2: 3.0}
    assert caught.value.truncated == {0: False, 2: False}
    assert isinstance(caught.value.errors[1], errors.ItemTooLong)
    assert (caught.value.version, caught.value.digest) == (1, DIGESTS[1])
    assert not isinstance(caught.value, errors.Unavailable)
    assert len(server.requests) == 1


def test_only_the_items_that_may_get_a_score_are_sent_again_pinned(server: FakeServer, connect: Connect) -> None:
    server.will(fail_items(0, 2, reason="WORKER_FAILED"), fail_items(1, reason="OUT_OF_MEMORY"))
    scores = score(connect(server.address), "a", "bb", "ccc")
    assert scores.values == [1.0, 2.0, 3.0]
    sent = [[each.text for group in request.groups for each in group.completions] for request in server.requests]
    assert sent == [["a", "bb", "ccc"], ["a", "ccc"], ["ccc"]]
    assert [request.model for request in server.requests] == ["length", "length@1", "length@1"]
    assert server.requests[1].options.expected_digest == DIGESTS[1]


def test_an_item_that_cannot_have_a_score_is_not_sent_again_with_the_others(
    server: FakeServer, connect: Connect
) -> None:
    def behave(server: FakeServer, request: Any, context: grpc.ServicerContext) -> scoring_pb2.ScoreResponse:
        response = fail_items(0, reason="WORKER_FAILED")(server, request, context)
        assert response is not None
        response.results[1].CopyFrom(fail_items(1, reason="ITEM_TOO_LONG")(server, request, context).results[1])
        return response

    server.will(behave)
    with pytest.raises(errors.ItemsFailed) as caught:
        score(connect(server.address), "a", "bb", "ccc")
    assert caught.value.scores == {0: 1.0, 2: 3.0}
    assert [each.text for each in server.requests[1].groups[0].completions] == ["a"]


def test_a_repetition_on_another_scale_is_not_mixed_in(server: FakeServer, connect: Connect) -> None:
    server.will(
        fail_items(0, reason="WORKER_FAILED"), change(lambda response: setattr(response.calibration, "digest", "new"))
    )
    with pytest.raises(errors.ItemsUnavailable) as caught:
        score(connect(server.address), "a", "bb", calibrated=True)
    assert caught.value.scores == {1: 20.0}


def test_items_that_keep_failing_may_still_get_a_score_later(server: FakeServer, connect: Connect) -> None:
    server.always = fail_items(0, reason="WORKER_FAILED")
    with pytest.raises(errors.ItemsUnavailable) as caught:
        score(connect(server.address), "a", "bb")
    assert isinstance(caught.value, errors.Unavailable)
    assert caught.value.scores == {1: 2.0}
    assert len(server.requests) == 3


def test_a_repetition_that_fails_leaves_the_items_their_own_errors(server: FakeServer, connect: Connect) -> None:
    server.will(fail_items(0, reason="OUT_OF_MEMORY"), fail(Code.FAILED_PRECONDITION, "VERSION_NOT_LOADED"))
    with pytest.raises(errors.ItemsFailed) as caught:
        score(connect(server.address), "a", "bb")
    assert isinstance(caught.value.errors[0], errors.OutOfMemory)
    assert caught.value.scores == {1: 2.0}


# Replies that break the contract


def set_value(value: float) -> Callable[[scoring_pb2.ScoreResponse], object]:
    return lambda response: response.results[0].score.__setattr__("value", value)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda response: response.results.pop(), "1 results for 2 completions"),
        (lambda response: response.results.add(), "3 results for 2 completions"),
        (lambda response: response.results[1].Clear(), "completion 1 neither a score nor an error"),
        (set_value(float("nan")), "completion 0 the score nan"),
        (set_value(float("inf")), "completion 0 the score inf"),
        (lambda response: response.ClearField("digest"), "must say what gave it"),
        (lambda response: response.ClearField("version"), "must say what gave it"),
        (lambda response: response.ClearField("transform"), "what was done to the model's output"),
        (lambda response: setattr(response, "model", "other"), "'length' was asked and other@1 answered"),
        (lambda response: response.calibration.SetInParent(), "raw scores were asked of 'length' and calibrated"),
    ],
)
def test_a_reply_that_breaks_the_contract_gives_no_scores(
    server: FakeServer, connect: Connect, edit: Callable[[scoring_pb2.ScoreResponse], object], says: str
) -> None:
    server.will(change(edit))
    with pytest.raises(errors.InvalidReply, match=says):
        score(connect(server.address), "a", "bb")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("options", "edit", "says"),
    [
        ({"model": "length@1"}, lambda response: setattr(response, "version", 2), "length@2 answered"),
        ({"expected_digest": "e" * 64}, lambda response: None, "should have refused"),
        ({"calibrated": True}, lambda response: response.ClearField("calibration"), "raw ones came"),
    ],
)
def test_a_reply_to_another_question_gives_no_scores(
    server: FakeServer,
    connect: Connect,
    options: dict[str, Any],
    edit: Callable[[scoring_pb2.ScoreResponse], object],
    says: str,
) -> None:
    server.will(change(edit))
    with pytest.raises(errors.InvalidReply, match=says):
        score(connect(server.address), "a", **options)


# Large calls


def test_a_large_call_is_split_and_joined_in_order(server: FakeServer, connect: Connect) -> None:
    completions = ["x" * (index % 17) for index in range(50)]
    scores = score(connect(server.address, max_items_per_request=8), *completions)
    assert scores.values == [float(len(each)) for each in completions]
    assert [len(request.groups[0].completions) for request in server.requests].count(8) == 6
    assert len(server.requests) == 7


def test_messages_stay_below_the_limit(start_server: Callable[..., FakeServer], connect: Connect) -> None:
    server = start_server(max_message_bytes=4096)
    completions = ["x" * 1000] * 20
    assert score(connect(server.address, max_request_bytes=3500), *completions).values == [1000.0] * 20
    with pytest.raises(errors.RequestTooLarge, match="max_request_bytes"):
        score(connect(server.address), *completions)


def test_a_label_that_moves_between_the_parts_gives_scores_of_one_version(server: FakeServer, connect: Connect) -> None:
    server.label = "stable"
    server.will(usual, usual, as_version(2))
    scores = score(connect(server.address, max_items_per_request=1), "a", "bb", "ccc", model="length@stable")
    assert (scores.values, scores.version, scores.label) == ([1.0, 2.0, 3.0], 1, "stable")
    *_, last = server.requests
    assert (last.model, last.options.expected_digest) == ("length@1", DIGESTS[1])
    assert len(server.requests) == 4


def test_if_the_larger_part_came_from_a_version_that_is_gone_all_come_from_the_other(
    server: FakeServer, connect: Connect
) -> None:
    gone = fail(Code.FAILED_PRECONDITION, "VERSION_NOT_LOADED")
    server.will(as_version(2), usual, usual, gone, usual, usual)
    scores = score(connect(server.address, max_items_per_request=1), "a", "bb", "ccc", model="length@stable")
    assert (scores.values, scores.version) == ([1.0, 2.0, 3.0], 2)
    assert [request.model for request in server.requests[3:]] == ["length@1", "length@2", "length@2"]


def test_parts_that_never_agree_are_an_error(server: FakeServer, connect: Connect) -> None:
    def recalibrated() -> Behaviour:
        digests = iter("defghij")
        return change(lambda response: setattr(response.calibration, "digest", next(digests) * 64))

    server.always = recalibrated()
    with pytest.raises(errors.VersionChangedDuringCall, match="calibration dddd"):
        score(connect(server.address, max_items_per_request=1), "a", "bb", calibrated=True)


def test_one_part_that_fails_fails_the_call(server: FakeServer, connect: Connect) -> None:
    server.will(usual, fail(Code.INVALID_ARGUMENT, "INVALID_ARGUMENT"))
    with pytest.raises(errors.InvalidRequest):
        score(connect(server.address, max_items_per_request=1), "a", "bb", "ccc")


# Life


def test_a_closed_client_says_so(server: FakeServer, connect: Connect) -> None:
    client = connect(server.address)
    score(client, "x")
    client.close()
    client.close()
    with pytest.raises(errors.ClientClosed):
        score(client, "x")


def test_a_large_reply_needs_a_large_limit(server: FakeServer, connect: Connect) -> None:
    server.will(change(lambda response: setattr(response, "label", "l" * 100_000)))
    with pytest.raises(errors.RequestTooLarge, match="larger than max"):
        score(connect(server.address, max_message_mb=0.05), "x")
