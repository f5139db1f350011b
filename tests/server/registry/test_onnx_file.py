"""What an ONNX file says of itself: weights beside it, and nothing elsewhere, wherever in the file they are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from rm_server.errors import ArtifactUnreadable, UnsupportedArtifact
from rm_server.registry.onnx_file import read_onnx_file

from .onnx_bytes import field, node, onnx_model, tensor

# Where a tensor can hide: an initializer, a constant, a subgraph's constant, a sparse one, a function, training.
CONSTANT = node("Constant", field(5, tensor("w")))
PLACES = {
    "initializer": onnx_model("w"),
    "constant": onnx_model(nodes=(CONSTANT,)),
    "branch": onnx_model(nodes=(node("If", field(6, field(1, CONSTANT))),)),
    "branches": onnx_model(nodes=(node("Loop", field(11, field(5, tensor("w")))),)),
    "sparse": onnx_model(nodes=(node("Constant", field(22, field(1, tensor("w")))),)),
    "function": onnx_model() + field(25, field(7, CONSTANT)),
    "training": onnx_model() + field(20, field(2, field(1, CONSTANT))),
}


def write(folder: Path, content: bytes) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("content", PLACES.values(), ids=PLACES)
def test_external_weights_are_found_wherever_they_are_named(tmp_path: Path, content: bytes) -> None:
    assert read_onnx_file(write(tmp_path, content)).external == {"w"}


def test_operators_are_named(tmp_path: Path) -> None:
    found = read_onnx_file(write(tmp_path, onnx_model(nodes=(node("Gemm"), node("DynamicQuantizeLinear")))))
    assert (found.op_types, found.external) == ({"Gemm", "DynamicQuantizeLinear"}, set())


@pytest.mark.parametrize("name", ["../w", "/etc/passwd", "a/../../w", "sub/w", "..", "", "a\\w"])
def test_weights_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsupportedArtifact, match="only files beside it are read"):
        read_onnx_file(write(tmp_path, onnx_model(name)))


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"no model at all, only text", onnx_model("w")[:-3], field(7, b""), b"\x3a\xff\xff\xff\xff\xff\x01"],
    ids=["empty", "letter", "text", "cut", "no operators", "too long"],
)
def test_what_is_no_onnx_file_is_named(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ArtifactUnreadable, match=r"model\.onnx"):
        read_onnx_file(write(tmp_path, content))


def test_graphs_within_graphs_have_an_end(tmp_path: Path) -> None:
    graph = field(1, node())
    for _ in range(200):
        graph = field(1, node("If", field(6, graph)))
    with pytest.raises(ArtifactUnreadable, match="too deeply"):
        read_onnx_file(write(tmp_path, field(7, graph)))
