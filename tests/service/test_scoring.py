"""Scores over a socket: what is asked for, who answered, one call and many over a stream."""

from __future__ import annotations

import itertools
import math
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import torch
from rm_api.v1 import errors_pb2, scoring_pb2
from running_server import RunningServer, error_of, score_request
from transformers import AutoModelForSequenceClassification, AutoTokenizer

TEXTS = ("Hello!", "Go away.", "It depends on whom you ask, and when.", "é 汉字 🙂")


def alone(folder: Path, prompt: str, completion: str) -> float:
    """What transformers gives for one item: no batch, no padding, nothing of ours."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = tokenizer(prompt + completion, return_tensors="pt")["input_ids"]
    ids = torch.cat([ids, torch.tensor([[tokenizer.eos_token_id]])], dim=1)
    with torch.no_grad():
        return float(model(input_ids=ids).logits[0, 0])


def values(response: scoring_pb2.ScoreResponse) -> list[float]:
    assert all(result.WhichOneof("outcome") == "score" for result in response.results)
    return [result.score.value for result in response.results]


def test_the_scores_are_transformers_own(server: RunningServer, versions: list[Path]) -> None:
    for number, folder in ((1, versions[0]), (2, versions[1])):
        got = values(server.score(f"helpfulness@{number}", *TEXTS))
        assert got == pytest.approx([alone(folder, "Hi", text) for text in TEXTS], abs=1e-5)


def test_a_reply_says_what_gave_it(server: RunningServer) -> None:
    response = server.score("helpfulness@stable", *TEXTS)
    assert (response.model, response.version, response.label) == ("helpfulness", 1, "stable")
    assert len(response.digest) == 64
    assert response.transform == scoring_pb2.TRANSFORM_RAW_LOGIT
    assert not response.HasField("calibration")
    assert all(result.num_tokens > 0 and not result.truncated for result in response.results)
    timings = response.timings
    assert 0 <= timings.tokenize_seconds <= timings.total_seconds
    assert 0 <= timings.compute_seconds <= timings.total_seconds < 60
    assert server.score("helpfulness@2", "a").label == ""


def test_the_bare_name_is_the_label_stable(server: RunningServer) -> None:
    assert server.score("helpfulness", "a").version == 1


def test_groups_keep_their_order(server: RunningServer) -> None:
    request = scoring_pb2.ScoreRequest(model="helpfulness@1")
    pairs = [("p", "a"), ("p", "b"), ("q", "c")]
    for prompt, completions in itertools.groupby(pairs, key=lambda pair: pair[0]):
        group = request.groups.add()
        group.prompt.text = prompt
        for _, completion in completions:
            group.completions.add().text = completion
    request.groups.add().prompt.text = "no completions"
    together = values(server.scoring.Score(request))
    assert together == pytest.approx(
        [values(server.score("helpfulness@1", c, prompt=p))[0] for p, c in pairs], abs=1e-5
    )


def test_token_ids_are_used_as_they_are(server: RunningServer, versions: list[Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(versions[0])
    request = scoring_pb2.ScoreRequest(model="helpfulness@1")
    group = request.groups.add()
    group.prompt.token_ids.ids.extend(tokenizer("Hi")["input_ids"])
    group.completions.add().token_ids.ids.extend([*tokenizer("Hello!")["input_ids"], tokenizer.eos_token_id])
    assert values(server.scoring.Score(request)) == pytest.approx([alone(versions[0], "Hi", "Hello!")], abs=1e-5)


def test_an_expected_digest_is_checked(server: RunningServer) -> None:
    digest = server.score("helpfulness@1", "a").digest
    options = scoring_pb2.ScoreOptions(expected_digest=digest)
    assert server.score("helpfulness@1", "a", options=options).digest == digest
    status, error = error_of(lambda: server.score("helpfulness@2", "a", options=options))
    assert (status, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, errors_pb2.ERROR_REASON_VERSION_CHANGED)


def test_calibrated_scores_of_an_uncalibrated_version_are_refused(server: RunningServer) -> None:
    options = scoring_pb2.ScoreOptions(calibrated=True)
    status, error = error_of(lambda: server.score("helpfulness@1", "a", options=options))
    assert (status, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, errors_pb2.ERROR_REASON_NOT_CALIBRATED)
    assert "`rm-server calibrate`" in error.message


class Stream:
    """A ScoreStream that is fed and read step by step."""

    def __init__(self, server: RunningServer) -> None:
        self._requests: queue.Queue[scoring_pb2.ScoreStreamRequest | None] = queue.Queue()
        self.answers = server.scoring.ScoreStream(iter(self._requests.get, None), timeout=60)

    def send(self, request_id: str, request: scoring_pb2.ScoreRequest) -> None:
        self._requests.put(scoring_pb2.ScoreStreamRequest(id=request_id, request=request))

    def close(self) -> list[scoring_pb2.ScoreStreamResponse]:
        self._requests.put(None)
        return list(self.answers)


def test_answers_of_a_stream_are_matched_by_id(server: RunningServer) -> None:
    stream = Stream(server)
    for number in range(300):
        stream.send(f"r{number}", score_request(f"helpfulness@{1 + number % 2}", f"text {number}"))
    answers = {answer.id: answer.response for answer in stream.close()}
    assert len(answers) == 300
    for number in (0, 1, 150, 299):
        response = answers[f"r{number}"]
        expected = server.score(f"helpfulness@{1 + number % 2}", f"text {number}")
        assert (response.version, response.digest) == (expected.version, expected.digest)
        assert values(response) == pytest.approx(values(expected), abs=1e-5)


def test_a_failed_request_leaves_the_stream_and_its_neighbours_alone(server: RunningServer) -> None:
    stream = Stream(server)
    stream.send("good", score_request("helpfulness@1", "a"))
    stream.send("bad", score_request("nonsense", "a"))
    stream.send("", score_request("not a selector@@", "a"))
    stream.send("empty", scoring_pb2.ScoreRequest(model="helpfulness@1"))
    stream.send("good too", score_request("helpfulness@1", "b"))
    answers = {answer.id: answer for answer in stream.close()}
    assert answers["bad"].error.reason == errors_pb2.ERROR_REASON_MODEL_NOT_FOUND
    assert answers[""].error.reason == errors_pb2.ERROR_REASON_INVALID_SELECTOR
    assert len(answers["empty"].response.results) == 0
    for request_id in ("good", "good too"):
        assert math.isfinite(values(answers[request_id].response)[0])


def raw_stream(server: RunningServer, messages: Iterator[bytes]) -> grpc.Call:
    method = server.channel.stream_stream(
        "/rm_api.v1.ScoringService/ScoreStream",
        response_deserializer=scoring_pb2.ScoreStreamResponse.FromString,
    )
    return method(messages, timeout=60)


def broken_utf8(request_id: str) -> bytes:
    request = scoring_pb2.ScoreStreamRequest(id=request_id, request=score_request("helpfulness@1", "XYZ"))
    return request.SerializeToString().replace(b"XYZ", b"X\xff\xfe")


def test_invalid_utf8_in_one_request_of_a_stream_fails_that_one(server: RunningServer) -> None:
    good = scoring_pb2.ScoreStreamRequest(id="good", request=score_request("helpfulness@1", "a")).SerializeToString()
    answers = {answer.id: answer for answer in raw_stream(server, iter([broken_utf8("bad"), good]))}
    assert answers["bad"].error.reason == errors_pb2.ERROR_REASON_MALFORMED_REQUEST
    assert math.isfinite(values(answers["good"].response)[0])


def test_garbage_on_a_stream_ends_it_after_those_under_way(server: RunningServer) -> None:
    good = scoring_pb2.ScoreStreamRequest(id="good", request=score_request("helpfulness@1", "a")).SerializeToString()
    answers = raw_stream(server, iter([good, b"\xff\xff\xff"]))
    assert next(answers).id == "good"
    status, error = error_of(lambda: next(answers))
    assert (status, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, errors_pb2.ERROR_REASON_MALFORMED_REQUEST)


def test_a_stream_that_is_dropped_leaves_the_server_well(server: RunningServer) -> None:
    stream = Stream(server)
    for number in range(20):
        stream.send(str(number), score_request("helpfulness@1", *(f"{number} {part}" for part in range(50))))
    next(stream.answers)
    stream.answers.cancel()
    assert values(server.score("helpfulness@1", "still here"))


def test_many_threads_share_one_channel(server: RunningServer) -> None:
    expected = values(server.score("helpfulness@1", *TEXTS))
    failures: list[object] = []

    def work() -> None:
        for _ in range(20):
            got = values(server.score("helpfulness@1", *TEXTS))
            if got != pytest.approx(expected, abs=1e-5):
                failures.append(got)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
