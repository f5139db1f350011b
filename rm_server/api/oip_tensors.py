"""Tensors of the Open Inference Protocol: their elements as typed lists or as raw bytes, to and from arrays.

Raw elements are little-endian and row by row; each element of a BYTES tensor has its length in 4 bytes before it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from rm_api.oip import inference_pb2

from rm_server.errors import InvalidRequest

Elements: TypeAlias = npt.NDArray[Any] | list[bytes]
"""An array of the tensor's shape; for BYTES the elements in a row."""

BYTES = "BYTES"


class _Encoding(NamedTuple):
    field: str
    dtype: str


# Of BOOL any byte can come, so it is read as a small number.
_ENCODINGS: Mapping[str, _Encoding] = {
    "BOOL": _Encoding("bool_contents", "u1"),
    "INT32": _Encoding("int_contents", "<i4"),
    "INT64": _Encoding("int64_contents", "<i8"),
    "FP64": _Encoding("fp64_contents", "<f8"),
}
_BYTES_FIELD = "bytes_contents"


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named tensor; ``elements`` has its shape, or is a list for BYTES."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    elements: Elements


def is_raw(request: inference_pb2.ModelInferRequest) -> bool:
    """Whether the elements come as raw bytes; the answer's go the same way."""
    return bool(request.raw_input_contents)


def read_tensors(request: inference_pb2.ModelInferRequest, datatypes: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """The inputs by name. ``datatypes``: the names that are known, and what each may be. Raises InvalidRequest."""
    if is_raw(request) and len(request.raw_input_contents) != len(request.inputs):
        raise InvalidRequest(
            f"raw_input_contents has {len(request.raw_input_contents)} entries for {len(request.inputs)} inputs; "
            "one for each was expected."
        )
    tensors: dict[str, Tensor] = {}
    for index, message in enumerate(request.inputs):
        if message.name not in datatypes:
            raise InvalidRequest(f"Input {message.name!r} is not known; known are {', '.join(datatypes)}.")
        if message.name in tensors:
            raise InvalidRequest(f"Input {message.name} comes twice.")
        if message.datatype not in datatypes[message.name]:
            raise InvalidRequest(
                f"{message.name} has datatype {message.datatype!r}; "
                f"{' or '.join(datatypes[message.name])} was expected."
            )
        if message.parameters:
            raise InvalidRequest(
                f"{message.name} has parameters ({', '.join(sorted(message.parameters))}); an input takes none. "
                "Shared memory is not offered: send the elements."
            )
        raw = request.raw_input_contents[index] if is_raw(request) else None
        tensors[message.name] = _read(message, raw)
    return tensors


def write_tensors(
    response: inference_pb2.ModelInferResponse, tensors: Sequence[Tensor], *, as_raw: bool
) -> inference_pb2.ModelInferResponse:
    """Adds the tensors, which are not BYTES, to the answer, and returns it."""
    for tensor in tensors:
        encoding = _ENCODINGS[tensor.datatype]
        array = np.asarray(tensor.elements, encoding.dtype)
        message = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if as_raw:
            response.raw_output_contents.append(array.tobytes())
        else:
            getattr(message.contents, encoding.field).extend(array.ravel().tolist())
    return response


def _read(message: inference_pb2.ModelInferRequest.InferInputTensor, raw: bytes | None) -> Tensor:
    shape = tuple(message.shape)
    if not shape or min(shape) < 0:
        raise InvalidRequest(f"{message.name} has shape {list(shape)}; at least one size, none negative, was expected.")
    if raw is not None and message.HasField("contents"):
        raise InvalidRequest(f"{message.name} has contents, and raw_input_contents is set; send one of them.")
    if message.datatype == BYTES:
        texts = list(message.contents.bytes_contents) if raw is None else _split(message, raw)
        _check_count(message, len(texts))
        return Tensor(message.name, BYTES, shape, texts)
    encoding = _ENCODINGS[message.datatype]
    if raw is None:
        array = np.array(getattr(message.contents, encoding.field), encoding.dtype)
    else:
        itemsize = np.dtype(encoding.dtype).itemsize
        if len(raw) % itemsize:
            raise InvalidRequest(
                f"{message.name} has {len(raw)} raw bytes; {message.datatype} takes {itemsize} for each element."
            )
        array = np.frombuffer(raw, encoding.dtype)
    _check_count(message, array.size)
    try:
        return Tensor(message.name, message.datatype, shape, array.reshape(shape))
    except ValueError as error:  # more sizes than NumPy knows, or a 0 among ones that overflow
        raise InvalidRequest(f"{message.name} cannot have shape {list(shape)[:8]}: {error}.") from None


def _check_count(message: inference_pb2.ModelInferRequest.InferInputTensor, num_elements: int) -> None:
    expected = math.prod(message.shape)
    if num_elements != expected:
        raise InvalidRequest(
            f"{message.name} has {num_elements} elements of {message.datatype}; "
            f"its shape {list(message.shape)} says {expected}."
        )


def _split(message: inference_pb2.ModelInferRequest.InferInputTensor, raw: bytes) -> list[bytes]:
    expected = math.prod(message.shape)
    elements: list[bytes] = []
    position = 0
    while position < len(raw):
        if len(elements) == expected:  # there may be millions more
            raise InvalidRequest(
                f"{message.name} has more elements of BYTES than the {expected} that its shape {list(message.shape)} "
                "says."
            )
        start = position + 4
        end = start + struct.unpack_from("<I", raw, position)[0] if start <= len(raw) else len(raw) + 1
        if end > len(raw):
            raise InvalidRequest(f"{message.name}: its raw bytes end within element {len(elements)}.")
        elements.append(raw[start:end])
        position = end
    return elements
