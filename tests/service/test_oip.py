"""The Open Inference Protocol over a socket, spoken with nothing but its own messages."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from rm_api.oip import inference_pb2, inference_pb2_grpc
from rm_api.v1 import errors_pb2, experiments_pb2
from running_server import Gate, RunningServer, error_of, running
from waiting import wait_until

TEXTS = ("Hello!", "Go away.", "é 汉字 🙂")
READY = inference_pb2.ModelReadyRequest


@pytest.fixture
def oip(server: RunningServer) -> inference_pb2_grpc.GRPCInferenceServiceStub:
    return inference_pb2_grpc.GRPCInferenceServiceStub(server.channel)


def request(
    *completions: str, model: str = "helpfulness@1", prompt: str | None = None, request_id: str = ""
) -> inference_pb2.ModelInferRequest:
    """Texts as typed contents."""
    message = inference_pb2.ModelInferRequest(model_name=model, id=request_id)
    texts = {"completion": completions}
    if prompt is not None:
        texts["prompt"] = (prompt,) * len(completions)
    for name, values in texts.items():
        tensor = message.inputs.add(name=name, datatype="BYTES", shape=[len(values)])
        tensor.contents.bytes_contents.extend(value.encode() for value in values)
    return message


def scores(response: inference_pb2.ModelInferResponse) -> list[float]:
    (output,) = [output for output in response.outputs if output.name == "score"]
    assert output.datatype == "FP64"
    return list(output.contents.fp64_contents)


def score_values(server: RunningServer, selector: str, *texts: str, prompt: str) -> list[float]:
    return [result.score.value for result in server.score(selector, *texts, prompt=prompt).results]


def test_the_scores_are_score_s(server: RunningServer, oip: inference_pb2_grpc.GRPCInferenceServiceStub) -> None:
    response = oip.ModelInfer(request(*TEXTS, prompt="Hi", request_id="mine"))
    expected = server.score("helpfulness@1", *TEXTS, prompt="Hi")
    assert scores(response) == [result.score.value for result in expected.results]
    assert (response.model_name, response.model_version, response.id) == ("helpfulness", "1", "mine")
    assert response.parameters["digest"].string_param == expected.digest
    assert response.parameters["transform"].string_param == "raw_logit"


def test_a_completion_may_stand_alone(server: RunningServer, oip: inference_pb2_grpc.GRPCInferenceServiceStub) -> None:
    got = scores(oip.ModelInfer(request(*TEXTS)))
    assert got == pytest.approx(score_values(server, "helpfulness@1", *TEXTS, prompt=""), abs=1e-5)


def test_raw_elements_are_answered_by_raw_elements(
    server: RunningServer, oip: inference_pb2_grpc.GRPCInferenceServiceStub
) -> None:
    message = inference_pb2.ModelInferRequest(model_name="helpfulness", model_version="2")
    message.inputs.add(name="completion", datatype="BYTES", shape=[len(TEXTS), 1])
    elements = [text.encode() for text in TEXTS]
    message.raw_input_contents.append(b"".join(struct.pack("<I", len(raw)) + raw for raw in elements))
    response = oip.ModelInfer(message)
    assert response.model_version == "2"
    assert [output.name for output in response.outputs] == ["score", "truncated", "num_tokens"]
    raw_scores, truncated, num_tokens = response.raw_output_contents
    expected = server.score("helpfulness@2", *TEXTS, prompt="").results
    assert np.frombuffer(raw_scores, "<f8") == pytest.approx([result.score.value for result in expected], abs=1e-5)
    assert truncated == b"\0\0\0"
    assert np.frombuffer(num_tokens, "<i4").tolist() == [result.num_tokens for result in expected]


def ids_request(rows: Sequence[Sequence[int]], mask: Sequence[Sequence[int]]) -> inference_pb2.ModelInferRequest:
    message = inference_pb2.ModelInferRequest(model_name="helpfulness@1")
    for name, values in (("input_ids", rows), ("attention_mask", mask)):
        tensor = message.inputs.add(name=name, datatype="INT64", shape=[len(values), len(values[0])])
        tensor.contents.int64_contents.extend(itertools.chain.from_iterable(values))
    return message


def test_what_is_masked_does_not_count(server: RunningServer, oip: inference_pb2_grpc.GRPCInferenceServiceStub) -> None:
    padded = ids_request([[9, 0, 7, 0], [0, 0, 5, 6]], [[1, 1, 1, 0], [0, 0, 1, 1]])
    first = ids_request([[9, 0, 7]], [[1, 1, 1]])
    second = ids_request([[5, 6]], [[1, 1]])
    got = scores(oip.ModelInfer(padded))
    assert got == pytest.approx(scores(oip.ModelInfer(first)) + scores(oip.ModelInfer(second)), abs=1e-5)
    assert got[0] != pytest.approx(scores(oip.ModelInfer(ids_request([[9, 0, 7, 0]], [[1, 1, 1, 1]])))[0], abs=1e-3)


def test_no_items_give_no_scores(oip: inference_pb2_grpc.GRPCInferenceServiceStub) -> None:
    response = oip.ModelInfer(request())
    assert scores(response) == []
    assert [list(output.shape) for output in response.outputs] == [[0], [0], [0]]


def test_one_failed_item_fails_the_call_and_is_named(oip: inference_pb2_grpc.GRPCInferenceServiceStub) -> None:
    status, error = error_of(lambda: oip.ModelInfer(request("fine", "", "word " * 2000)))
    assert (status, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, errors_pb2.ERROR_REASON_EMPTY_ITEM)
    assert "completion[1]: " in error.message
    assert "completion[2]: " in error.message
    assert "completion[0]" not in error.message


@pytest.mark.parametrize(
    ("message", "status", "reason"),
    [
        (request("a", model="nonsense"), grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
        (request("a", model="helpfulness@9"), grpc.StatusCode.NOT_FOUND, "VERSION_NOT_FOUND"),
        (request("a", model=""), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_SELECTOR"),
        (
            inference_pb2.ModelInferRequest(model_name="helpfulness@1", model_version="2"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_ARGUMENT",
        ),
        (
            inference_pb2.ModelInferRequest(model_name="helpfulness"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_ARGUMENT",
        ),
    ],
)
def test_errors_are_typed(
    oip: inference_pb2_grpc.GRPCInferenceServiceStub,
    message: inference_pb2.ModelInferRequest,
    status: grpc.StatusCode,
    reason: str,
) -> None:
    got, error = error_of(lambda: oip.ModelInfer(message))
    assert (got, errors_pb2.ErrorReason.Name(error.reason)) == (status, f"ERROR_REASON_{reason}")


def test_a_run_is_named_in_the_parameters(
    server: RunningServer, oip: inference_pb2_grpc.GRPCInferenceServiceStub
) -> None:
    message = request("a", "b", model="helpfulness")
    message.parameters["run"].string_param = "exp-oip"
    oip.ModelInfer(message)
    runs = server.experiments.ListRuns(experiments_pb2.ListRunsRequest()).runs
    (run,) = [run for run in runs if run.run == "exp-oip"]
    assert (run.version, run.items) == (1, 2)


def test_readiness_and_metadata(server: RunningServer, oip: inference_pb2_grpc.GRPCInferenceServiceStub) -> None:
    assert oip.ServerLive(inference_pb2.ServerLiveRequest()).live
    assert oip.ServerReady(inference_pb2.ServerReadyRequest()).ready
    assert oip.ServerMetadata(inference_pb2.ServerMetadataRequest()).name == "rm-server"
    for name, version, is_ready in (
        ("helpfulness", "", True),
        ("helpfulness", "2", True),
        ("helpfulness@stable", "", True),
        ("helpfulness", "9", False),
        ("helpfulness@nobody", "", False),
        ("nonsense", "", False),
    ):
        assert oip.ModelReady(READY(name=name, version=version)).ready == is_ready, (name, version)
    metadata = oip.ModelMetadata(inference_pb2.ModelMetadataRequest(name="helpfulness@2"))
    assert (metadata.name, list(metadata.versions)) == ("helpfulness", ["1", "2"])
    assert metadata.properties["digest"] == server.score("helpfulness@2", "a").digest
    status, _ = error_of(lambda: oip.ModelMetadata(inference_pb2.ModelMetadataRequest(name="nonsense")))
    assert status == grpc.StatusCode.NOT_FOUND
    health = server.health.Check(health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService"))
    assert health.status == health_pb2.HealthCheckResponse.SERVING


def test_what_is_not_offered_is_unimplemented(server: RunningServer) -> None:
    index = server.channel.unary_unary("/inference.GRPCInferenceService/RepositoryIndex")
    with pytest.raises(grpc.RpcError) as caught:
        index(b"")
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_version_that_is_not_loaded_is_not_ready(tmp_path: Path, versions: list[Path]) -> None:
    with running(tmp_path) as server:
        oip = inference_pb2_grpc.GRPCInferenceServiceStub(server.channel)
        server.deploy("helpfulness", versions[0], label=None)
        assert oip.ModelReady(READY(name="helpfulness", version="1")).ready
        assert not oip.ModelReady(READY(name="helpfulness")).ready


# --- streams ---


def test_a_stream_is_answered_in_its_order(
    server: RunningServer, oip: inference_pb2_grpc.GRPCInferenceServiceStub
) -> None:
    texts = [f"text {number} " * (1 + 7 * (number % 5)) for number in range(100)]
    requests = [request(text, model=f"helpfulness@{1 + number % 2}") for number, text in enumerate(texts)]
    answers = list(oip.ModelStreamInfer(iter(requests), timeout=60))
    assert [answer.error_message for answer in answers] == [""] * 100
    assert [answer.infer_response.model_version for answer in answers] == ["1", "2"] * 50
    for number in (0, 1, 57, 99):
        expected = score_values(server, f"helpfulness@{1 + number % 2}", texts[number], prompt="")
        assert scores(answers[number].infer_response) == pytest.approx(expected, abs=1e-5)


def test_an_answer_waits_for_those_before_it(gate: Gate, tmp_path: Path, versions: list[Path]) -> None:
    """The second request fails at once, while the first is still being computed."""
    with running(tmp_path) as server:
        server.deploy("helpfulness", versions[0])
        oip = inference_pb2_grpc.GRPCInferenceServiceStub(server.channel)
        gate.close()
        requests = [request("a", request_id="first"), request("a", model="nonsense", request_id="second")]
        answers = oip.ModelStreamInfer(iter(requests), timeout=60)
        gate.wait_for_batch()
        labels = {"method": "ModelStreamInfer", "model": "", "version": "", "reason": "model_not_found"}
        wait_until(lambda: server.metric("rm_requests_total", **labels) == 1)
        gate.open()
        assert [answer.infer_response.id for answer in answers] == ["first", "second"]


def test_a_request_that_fails_leaves_the_stream_alone(oip: inference_pb2_grpc.GRPCInferenceServiceStub) -> None:
    requests = [
        request("a", request_id="r1"),
        request("a", model="nonsense", request_id="r2"),
        request("", request_id="r3"),
        request("a", request_id="r4"),
    ]
    answers = list(oip.ModelStreamInfer(iter(requests), timeout=60))
    assert [answer.infer_response.id for answer in answers] == ["r1", "r2", "r3", "r4"]
    reasons = [answer.error_message.partition(":")[0] for answer in answers]
    assert reasons == ["", "MODEL_NOT_FOUND", "EMPTY_ITEM", ""]
    assert not any(answer.infer_response.outputs for answer in answers[1:3])


def test_bytes_that_are_no_message_leave_the_stream_alone(server: RunningServer) -> None:
    stream = server.channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        response_deserializer=inference_pb2.ModelStreamInferResponse.FromString,
    )
    broken, whole = stream(iter([b"\xff\xff", request("a").SerializeToString()]), timeout=60)
    assert broken.error_message.startswith("MALFORMED_REQUEST: ")
    assert whole.error_message == ""
    assert len(scores(whole.infer_response)) == 1


def test_a_timeout_in_the_parameters_is_a_deadline(gate: Gate, tmp_path: Path, versions: list[Path]) -> None:
    with running(tmp_path) as server:
        server.deploy("helpfulness", versions[0])
        oip = inference_pb2_grpc.GRPCInferenceServiceStub(server.channel)
        gate.close()
        message = request("a")
        message.parameters["timeout"].int64_param = 50_000
        status, _ = error_of(lambda: oip.ModelInfer(message, timeout=60))
        assert status == grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_token_is_asked_for(tmp_path: Path) -> None:
    with running(tmp_path, token="s3cret") as server:
        oip = inference_pb2_grpc.GRPCInferenceServiceStub(server.channel)
        status, _ = error_of(lambda: oip.ModelInfer(request("a")))
        assert status == grpc.StatusCode.UNAUTHENTICATED
        metadata = (("authorization", "Bearer s3cret"),)
        status, _ = error_of(lambda: oip.ModelInfer(request("a"), metadata=metadata))
        assert status == grpc.StatusCode.NOT_FOUND
