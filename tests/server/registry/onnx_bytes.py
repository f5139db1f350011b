"""The bytes of small ONNX files, written field by field: what a hostile exporter could write, too."""

from __future__ import annotations


def _varint(value: int) -> list[int]:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return [*parts, value]


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field of Protocol Buffers."""
    return bytes([*_varint(number << 3 | 2), *_varint(len(content))]) + content


def tensor(*locations: str) -> bytes:
    """A TensorProto whose weights lie in files of these names."""
    entries = (field(1, b"location") + field(2, name.encode()) for name in locations)
    return field(8, b"weight") + b"".join(field(13, entry) for entry in entries)


def node(op_type: str = "MatMul", *attributes: bytes) -> bytes:
    """A NodeProto."""
    return field(4, op_type.encode()) + b"".join(field(5, attribute) for attribute in attributes)


def onnx_model(*locations: str, nodes: tuple[bytes, ...] = (node(),)) -> bytes:
    """A ModelProto: nodes, and an initializer for each location. A field that nobody knows comes first."""
    graph = b"".join(field(1, one) for one in nodes) + b"".join(field(5, tensor(name)) for name in locations)
    return b"\x08\x0a" + field(99, b"new") + field(7, graph)
