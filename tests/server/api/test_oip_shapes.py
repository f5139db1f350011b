"""The Open Inference Protocol's requests become calls, and answers become tensors."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from rm_api.oip import inference_pb2
from score_answers import DIGEST, answer

from rm_server.api.oip_shapes import (
    infer_response,
    metadata_response,
    score_call,
    selector_text,
    stream_response,
    timeout_s,
)
from rm_server.api.roles import TABLE
from rm_server.errors import InvalidRequest, InvalidSelector, ItemTooLong, MalformedRequest
from rm_server.registry.records import CalibrationRecord, VersionRecord

FIELDS = {"BYTES": "bytes_contents", "INT64": "int64_contents", "INT32": "int_contents", "BOOL": "bool_contents"}


def request(
    *inputs: tuple[str, str, list[int], list[Any]], outputs: tuple[str, ...] = (), **fields: Any
) -> inference_pb2.ModelInferRequest:
    """Inputs as name, datatype, shape, elements."""
    message = inference_pb2.ModelInferRequest(**{"model_name": "m"} | fields)
    for name, datatype, shape, elements in inputs:
        tensor = message.inputs.add(name=name, datatype=datatype, shape=shape)
        getattr(tensor.contents, FIELDS[datatype]).extend(elements)
    for name in outputs:
        message.outputs.add(name=name)
    return message


COMPLETION = ("completion", "BYTES", [1], [b"a"])


def with_parameter(name: str, **value: Any) -> inference_pb2.ModelInferRequest:
    message = request(COMPLETION)
    message.parameters[name].CopyFrom(inference_pb2.InferParameter(**value))
    return message


# --- names ---


@pytest.mark.parametrize(
    ("name", "version", "selector"),
    [
        ("m", "", "m"),
        ("m", "3", "m@3"),
        ("m@stable", "", "m@stable"),
        ("team/m@3", "3", "team/m@3"),
        ("m", "stable", "m@stable"),
    ],
)
def test_name_and_version_make_a_selector(name: str, version: str, selector: str) -> None:
    assert selector_text(name, version) == selector


@pytest.mark.parametrize(("name", "version"), [("m@3", "2"), ("m@stable", "3")])
def test_two_versions_are_refused(name: str, version: str) -> None:
    with pytest.raises(InvalidRequest, match="give one of them"):
        selector_text(name, version)


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidSelector):
        selector_text("", "3")


# --- items ---


@pytest.mark.parametrize(
    ("inputs", "groups"),
    [
        ([("completion", "BYTES", [2], [b"a", "é".encode()])], [("", ("a",)), ("", ("é",))]),
        (
            [("prompt", "BYTES", [2, 1], [b"p", b"q"]), ("completion", "BYTES", [2], [b"a", b"b"])],
            [("p", ("a",)), ("q", ("b",))],
        ),
        ([("input_ids", "INT32", [2, 2], [1, 2, 3, 4])], [("", ((1, 2),)), ("", ((3, 4),))]),
        (
            [
                ("input_ids", "INT64", [3, 3], [1, 2, 0, 0, 3, 4, 0, 0, 0]),
                ("attention_mask", "BOOL", [3, 3], [True, True, False, False, True, True, False, False, False]),
            ],
            [("", ((1, 2),)), ("", ((3, 4),)), ("", ((),))],
        ),
        (
            [("attention_mask", "INT64", [1, 4], [0, 1, 1, 0]), ("input_ids", "INT64", [1, 4], [9, 0, 9, 9])],
            [("", ((0, 9),))],
        ),
        ([("completion", "BYTES", [0], [])], []),
        ([("input_ids", "INT64", [0, 7], [])], []),
    ],
)
def test_items(inputs: Any, groups: Any) -> None:
    assert list(score_call(request(*inputs), "r").groups) == groups


IDS = ("input_ids", "INT64", [1, 3], [1, 2, 3])


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ([], "The inputs are none"),
        ([("prompt", "BYTES", [1], [b"a"])], "The inputs are prompt;"),
        ([COMPLETION, IDS], "The inputs are completion, input_ids;"),
        ([COMPLETION, ("attention_mask", "INT64", [1, 1], [1])], "The inputs are attention_mask, completion;"),
        ([COMPLETION, ("prompt", "BYTES", [2], [b"a", b"b"])], "2 prompts and 1 completions"),
        ([("completion", "BYTES", [1, 2], [b"a", b"b"])], r"shape \[1, 2\]; \[N\] or \[N, 1\]"),
        ([("completion", "BYTES", [1, 1, 1], [b"a"])], r"\[N\] or \[N, 1\]"),
        ([("input_ids", "INT64", [3], [1, 2, 3])], r"\[N, L\]"),
        ([("input_ids", "INT64", [1_000_000_000, 0], [])], "L at least 1"),
        ([IDS, ("attention_mask", "INT64", [1, 2], [1, 1])], r"attention_mask has shape \[1, 2\]"),
        ([IDS, ("attention_mask", "INT64", [1, 3], [1, 2, 1])], "other than 0"),
        ([IDS, ("attention_mask", "INT64", [1, 3], [1, 0, 1])], r"attention_mask\[0\] has padding between ids"),
    ],
)
def test_other_inputs_are_refused(inputs: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        score_call(request(*inputs), "r")


def test_bytes_that_are_no_text_are_malformed() -> None:
    with pytest.raises(MalformedRequest, match=r"completion\[1\] is no text in UTF-8"):
        score_call(request(("completion", "BYTES", [2], [b"a", b"\xff"])), "r")


@pytest.mark.parametrize(
    ("inputs", "num_items"),
    [
        ([("input_ids", "INT64", [3, 2], []), ("attention_mask", "INT64", [3, 2], [])], 3),
        ([("completion", "BYTES", [-1000], [])], 0),
        ([], 0),
    ],
)
def test_rows_count_against_a_token_s_limit(inputs: Any, num_items: int) -> None:
    """And a shape that makes no sense gives nothing back: it is looked at before it is refused."""
    count = TABLE["/inference.GRPCInferenceService/ModelInfer"].items
    assert count is not None
    assert count(request(*inputs)) == num_items


# --- parameters ---


def test_parameters_become_options() -> None:
    message = request(COMPLETION, id="mine")
    for name, value in {
        "run": {"string_param": "exp-1"},
        "calibrated": {"bool_param": True},
        "bypass_cache": {"bool_param": True},
        "truncation": {"string_param": "keep_end"},
        "expected_digest": {"string_param": DIGEST},
        "timeout": {"int64_param": 1_500_000},
    }.items():
        message.parameters[name].CopyFrom(inference_pb2.InferParameter(**value))
    call = score_call(message, "mine")
    assert (call.run, call.request_id, call.calibrated, call.bypass_cache) == ("exp-1", "mine", True, True)
    assert (call.truncation, call.expected_digest, call.priority) == ("keep_end", DIGEST, 0)
    assert timeout_s(message) == 1.5


def test_without_parameters_all_is_as_the_version_says() -> None:
    call = score_call(request(COMPLETION), "r")
    assert (call.run, call.calibrated, call.bypass_cache, call.truncation, call.priority) == ("", False, False, None, 0)
    assert timeout_s(request(COMPLETION)) is None


@pytest.mark.parametrize(("triton", "ours"), [(0, 0), (1, 10), (11, 0), (21, -10)])
def test_triton_s_first_priority_is_our_largest(triton: int, ours: int) -> None:
    assert score_call(with_parameter("priority", uint64_param=triton), "r").priority == ours


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (with_parameter("sequence_id", int64_param=3), "'sequence_id' is not known; known are run"),
        (with_parameter("run", int64_param=3), "run is 3; a str was expected"),
        (with_parameter("calibrated", int64_param=1), "calibrated is 1; a bool was expected"),
        (with_parameter("priority", bool_param=True), "priority is True; a int was expected"),
        (with_parameter("run"), "run is None"),
        (with_parameter("truncation", string_param="middle"), "known are refuse, keep_end, keep_start"),
        (with_parameter("priority", uint64_param=22), r"1 \(goes first\) to 21"),
        (request(COMPLETION, outputs=("score", "logits")), "'logits' is not known; known are score"),
    ],
)
def test_other_options_are_refused(message: inference_pb2.ModelInferRequest, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        score_call(message, "r")


def test_a_negative_timeout_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="timeout is -1"):
        timeout_s(with_parameter("timeout", int64_param=-1))


def test_what_triton_does_to_outputs_is_refused() -> None:
    message = request(COMPLETION, outputs=("score",))
    message.outputs[0].parameters["classification"].int64_param = 3
    with pytest.raises(InvalidRequest, match="Neither classification nor shared memory"):
        score_call(message, "r")


# --- answers ---


def test_an_answer_says_what_gave_it() -> None:
    calibration = CalibrationRecord("c" * 64, 2.0, 1.0)
    scored = replace(answer(0.1, -2.5, model="team/m", version=3), calibration=calibration, arm="b")
    response = infer_response(request(COMPLETION, id="mine"), scored)
    assert (response.model_name, response.model_version, response.id) == ("team/m", "3", "mine")
    assert {name: value.string_param for name, value in response.parameters.items()} == {
        "digest": DIGEST,
        "transform": "raw_logit",
        "label": "stable",
        "arm": "b",
        "calibration": "c" * 64,
    }
    score, truncated, num_tokens = response.outputs
    assert (score.name, score.datatype, list(score.contents.fp64_contents)) == ("score", "FP64", [0.1, -2.5])
    assert (truncated.name, list(truncated.contents.bool_contents)) == ("truncated", [False, False])
    assert (num_tokens.name, list(num_tokens.contents.int_contents)) == ("num_tokens", [7, 7])


def test_only_what_is_asked_for_is_answered() -> None:
    response = infer_response(request(COMPLETION, outputs=("num_tokens", "score")), answer(0.5))
    assert [output.name for output in response.outputs] == ["num_tokens", "score"]


@pytest.mark.parametrize(
    ("inputs", "says"), [(COMPLETION, r"completion\[1\]: 600 tokens\."), (IDS, r"input_ids\[1\]: 600 tokens\.")]
)
def test_one_failed_item_fails_the_call(inputs: Any, says: str) -> None:
    with pytest.raises(ItemTooLong, match=says):
        infer_response(request(inputs), answer(0.5, ItemTooLong("600 tokens.")))


def test_an_answer_on_a_stream_is_its_request_s_last() -> None:
    asking = with_parameter("triton_enable_empty_final_response", bool_param=True)
    assert (
        stream_response(asking, inference_pb2.ModelInferResponse())
        .infer_response.parameters["triton_final_response"]
        .bool_param
    )
    plain = stream_response(request(COMPLETION), inference_pb2.ModelInferResponse())
    assert not plain.infer_response.parameters


def test_metadata() -> None:
    record = VersionRecord("m", 3, DIGEST, "onnx", datetime(2030, 1, 1, tzinfo=UTC), "me", "", 512)
    metadata = metadata_response(record, [1, 3])
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("m", ["1", "3"], "rm_onnx")
    shapes = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in (*metadata.inputs, *metadata.outputs)}
    assert shapes == {
        "prompt": ("BYTES", [-1]),
        "completion": ("BYTES", [-1]),
        "input_ids": ("INT64", [-1, -1]),
        "attention_mask": ("INT64", [-1, -1]),
        "score": ("FP64", [-1]),
        "truncated": ("BOOL", [-1]),
        "num_tokens": ("INT32", [-1]),
    }
    assert metadata.properties == {"version": "3", "digest": DIGEST, "kind": "onnx", "max_tokens": "512"}
