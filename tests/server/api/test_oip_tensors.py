"""Tensors as typed lists and as raw bytes: the same elements, and what is wrong is said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from rm_api.oip import inference_pb2

from rm_server.api.oip_tensors import Tensor, read_tensors, write_tensors
from rm_server.errors import InvalidRequest

KNOWN = {"text": ("BYTES",), "ids": ("INT64", "INT32"), "flag": ("BOOL",)}


def typed(name: str, datatype: str, shape: Sequence[int], field: str, elements: Any) -> Any:
    request = inference_pb2.ModelInferRequest()
    tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
    getattr(tensor.contents, field).extend(elements)
    return request


def raw(name: str, datatype: str, shape: Sequence[int], elements: bytes) -> Any:
    request = inference_pb2.ModelInferRequest(raw_input_contents=[elements])
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    return request


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (typed("ids", "INT64", [2, 2], "int64_contents", [1, 2, 3, 2**40]), [[1, 2], [3, 2**40]]),
        (typed("ids", "INT32", [3], "int_contents", [1, -2, 3]), [1, -2, 3]),
        (typed("flag", "BOOL", [2], "bool_contents", [True, False]), [1, 0]),
        (raw("ids", "INT64", [1, 2], b"\x01" + bytes(7) + b"\x02\x01" + bytes(6)), [[1, 258]]),
        (raw("ids", "INT32", [2], b"\x01\0\0\0\xff\xff\xff\xff"), [1, -1]),
        (raw("flag", "BOOL", [3], b"\x01\x00\x01"), [1, 0, 1]),
        (raw("ids", "INT64", [0, 5], b""), []),
    ],
)
def test_numbers(request_: Any, expected: Any) -> None:
    ((_, tensor),) = read_tensors(request_, KNOWN).items()
    assert np.asarray(tensor.elements).tolist() == expected
    assert np.shape(tensor.elements) == tensor.shape


@pytest.mark.parametrize(
    "request_",
    [
        typed("text", "BYTES", [3], "bytes_contents", [b"a", b"", b"\xc3\xa9"]),
        raw("text", "BYTES", [3], b"\x01\0\0\0a" + b"\0\0\0\0" + b"\x02\0\0\0\xc3\xa9"),
    ],
)
def test_bytes(request_: Any) -> None:
    assert read_tensors(request_, KNOWN)["text"].elements == [b"a", b"", b"\xc3\xa9"]


def both() -> Any:
    request = typed("ids", "INT32", [1], "int_contents", [1])
    request.raw_input_contents.append(b"\x01\0\0\0")
    return request


def twice() -> Any:
    request = typed("ids", "INT32", [1], "int_contents", [1])
    request.inputs.append(request.inputs[0])
    return request


def shared_memory() -> Any:
    request = inference_pb2.ModelInferRequest()
    tensor = request.inputs.add(name="text", datatype="BYTES", shape=[1])
    tensor.parameters["shared_memory_region"].string_param = "region"
    return request


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (typed("TEXT", "BYTES", [1], "bytes_contents", [b"a"]), "'TEXT' is not known; known are text, ids, flag"),
        (typed("ids", "FP32", [1], "fp32_contents", [1.0]), "datatype 'FP32'; INT64 or INT32 was expected"),
        (typed("ids", "INT64", [2], "int64_contents", [1]), r"1 elements of INT64; its shape \[2\] says 2"),
        (typed("ids", "INT64", [1], "int_contents", [1]), "0 elements of INT64"),
        (typed("ids", "INT64", [-1], "int64_contents", [1]), "none negative"),
        (typed("ids", "INT64", [], "int64_contents", [1]), "at least one size"),
        (raw("ids", "INT64", [1], b"1234567"), "7 raw bytes; INT64 takes 8"),
        (raw("ids", "INT32", [10**12], b"1234"), "1 elements"),
        (typed("ids", "INT64", [2**40, 2**40, 0], "int64_contents", []), "ids cannot have shape"),
        (raw("ids", "INT32", [1] * 1000, b"1234"), "ids cannot have shape"),
        (raw("text", "BYTES", [1], b"\x05\0\0\0ab"), "end within element 0"),
        (raw("text", "BYTES", [2], b"\x01\0\0\0a\x01\0"), "end within element 1"),
        (raw("text", "BYTES", [2], b"\x01\0\0\0a"), "1 elements of BYTES"),
        (raw("text", "BYTES", [2], b"\0\0\0\0" * 5), r"more elements of BYTES than the 2 that its shape \[2\] says"),
        (inference_pb2.ModelInferRequest(raw_input_contents=[b""]), "1 entries for 0 inputs"),
        (both(), "send one of them"),
        (twice(), "comes twice"),
        (shared_memory(), "Shared memory is not offered"),
    ],
)
def test_what_is_wrong_is_said(request_: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        read_tensors(request_, KNOWN)


TENSORS = [
    Tensor("score", "FP64", (2,), np.array([0.1, -2.5])),
    Tensor("count", "INT32", (2,), np.array([7, 300])),
    Tensor("flag", "BOOL", (2,), np.array([True, False])),
]


def test_typed_answers() -> None:
    response = write_tensors(inference_pb2.ModelInferResponse(), TENSORS, as_raw=False)
    score, count, flag = response.outputs
    assert (score.name, score.datatype, list(score.shape)) == ("score", "FP64", [2])
    assert list(score.contents.fp64_contents) == [0.1, -2.5]
    assert list(count.contents.int_contents) == [7, 300]
    assert list(flag.contents.bool_contents) == [True, False]
    assert not response.raw_output_contents


def test_raw_answers() -> None:
    response = write_tensors(inference_pb2.ModelInferResponse(), TENSORS, as_raw=True)
    score, count, flag = response.raw_output_contents
    assert np.frombuffer(score, "<f8").tolist() == [0.1, -2.5]
    assert count == b"\x07\0\0\0\x2c\x01\0\0"
    assert flag == b"\x01\x00"
    assert not any(output.HasField("contents") for output in response.outputs)
