"""What an ONNX file says of itself without being built: the files it keeps weights in, and the operators it uses.

ONNX is Protocol Buffers (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto). Only the few fields below are walked,
in place, so that a file of any size costs no memory and no library has read anything before the paths are checked.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from rm_server.errors import ArtifactUnreadable, UnsupportedArtifact

MODEL = "model.onnx"
_MAX_DEPTH = 64

# Message → field number → the message in that field. Everything that can hold a tensor is reached.
_MESSAGES: Mapping[str, Mapping[int, str]] = MappingProxyType(
    {
        "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
        "TrainingInfo": {1: "Graph", 2: "Graph"},
        "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
        "Function": {7: "Node", 11: "Attribute"},
        "Node": {5: "Attribute"},
        "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
        "SparseTensor": {1: "Tensor", 2: "Tensor"},
        "Tensor": {13: "Entry"},
        "Entry": {},
    }
)
_OP_TYPE = 4  # of Node
_KEY, _VALUE = 1, 2  # of Entry
_LENGTH_DELIMITED = 2
_FIXED_BYTES = {1: 8, 5: 4}
_VARINT = 0


@dataclass(slots=True)
class OnnxFile:
    """``external``: names of the files beside it that hold weights. ``op_types``: the operators, ``MatMul`` say."""

    external: set[str] = field(default_factory=set)
    op_types: set[str] = field(default_factory=set)


def read_onnx_file(path: Path) -> OnnxFile:
    """Walks the file.

    Raises ArtifactUnreadable when it is missing or no ONNX file, UnsupportedArtifact when it keeps weights in a file
    that does not lie beside it.
    """
    found = OnnxFile()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _walk(content, 0, len(content), "Model", found, 0)
    except FileNotFoundError:
        raise ArtifactUnreadable(f"{path} is missing.") from None
    except (OSError, ValueError, IndexError) as error:
        raise ArtifactUnreadable(f"{path} is no whole ONNX file: {error}") from error
    if not found.op_types:
        raise ArtifactUnreadable(f"{path} is no ONNX file: it has no operators.")
    for name in found.external:
        if not name or "\\" in name or name in (".", "..") or Path(name).name != name:
            raise UnsupportedArtifact(
                f"{path} keeps weights in {name!r}; only files beside it are read. Save it with all external data in "
                "one file in the same folder."
            )
    return found


def _walk(content: mmap.mmap, start: int, end: int, message: str, found: OnnxFile, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError("graphs lie in graphs too deeply")
    known = _MESSAGES[message]
    entry: dict[int, str] = {}
    for number, first, last in _fields(content, start, end):
        if number in known:
            _walk(content, first, last, known[number], found, depth + 1)
        elif message == "Node" and number == _OP_TYPE:
            found.op_types.add(content[first:last].decode())
        elif message == "Entry" and number in (_KEY, _VALUE):
            entry[number] = content[first:last].decode()
    if entry.get(_KEY) == "location":
        found.external.add(entry.get(_VALUE, ""))


def _fields(content: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each length-delimited field; the others are passed over."""
    while at < end:
        tag, at = _varint(content, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _LENGTH_DELIMITED:
            size, at = _varint(content, at)
            if at + size > end:
                raise ValueError(f"a field of {size} bytes ends behind its message")
            yield number, at, at + size
            at += size
        elif wire_type == _VARINT:
            _, at = _varint(content, at)
        elif wire_type in _FIXED_BYTES:
            at += _FIXED_BYTES[wire_type]
        else:
            raise ValueError(f"a field has wire type {wire_type}")
    if at != end:
        raise ValueError("a message is cut off")


def _varint(content: mmap.mmap, at: int) -> tuple[int, int]:
    """The number, and the place behind it."""
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number has more than 64 bits")
