"""ONNX files of any exporter: read by length, alone where neighbours would show, refused where they do not fit.

The files here are made with `onnx.helper`: their scores can be computed by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from rm_server.backends.interface import ComputeSettings
from rm_server.backends.items import Batch, EncodedItem
from rm_server.backends.loading import load_backend
from rm_server.backends.onnx.backend import OnnxBackend
from rm_server.backends.onnx.session import OnnxSession
from rm_server.errors import ArtifactUnreadable, OutOfMemory, UnsupportedArtifact, WeightsMismatch
from rm_server.registry.manifest import Manifest

MANIFEST = Manifest("onnx", max_tokens=64)


def write(
    folder: Path,
    *,
    inputs: Sequence[str] = ("input_ids", "attention_mask"),
    counts_padding: bool = False,
    int_type: int = TensorProto.INT64,
    shape: tuple[Any, ...] = ("b", "t"),
    weights: Sequence[float] = (1.0, -1.0),
    output: str = "logits",
) -> Path:
    """A file whose logits are the sum of an item's ids, times ``weights``; with a mask, ids of padding do not count.

    ``counts_padding``: the number of all places is added, which a neighbour's length changes.
    """
    nodes = []
    summed = "input_ids"
    for name in inputs[1:]:
        if name == "attention_mask":
            nodes.append(helper.make_node("Mul", [summed, name], ["masked"]))
            summed = "masked"
        else:
            nodes.append(helper.make_node("Add", [summed, name], [f"with_{name}"]))
            summed = f"with_{name}"
    nodes += [
        helper.make_node("Cast", [summed], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["numbers", "axis"], ["sums"], keepdims=1),
    ]
    total = "sums"
    if counts_padding:
        nodes += [
            helper.make_node("Shape", ["input_ids"], ["places"], start=1, end=2),
            helper.make_node("Cast", ["places"], ["count"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["sums", "count"], ["more"]),
        ]
        total = "more"
    nodes.append(helper.make_node("MatMul", [total, "weights"], [output]))
    graph = helper.make_graph(
        nodes,
        "sum",
        [helper.make_tensor_value_info(name, int_type, shape) for name in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ("b", len(weights)))],
        [
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
            numpy_helper.from_array(np.array([weights], np.float32), "weights"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    folder.mkdir(exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    (folder / "config.json").write_text('{"vocab_size": 100}')
    return folder


def batch(*ids: Sequence[int], type_ids: Sequence[Sequence[int]] | None = None) -> Batch:
    types = type_ids or [None] * len(ids)
    return Batch.of(
        [
            EncodedItem(
                np.array(item, np.int32), len(item), type_ids=None if kinds is None else np.array(kinds, np.int32)
            )
            for item, kinds in zip(ids, types, strict=True)
        ]
    )


def load(folder: Path, manifest: Manifest = MANIFEST, **settings: Any) -> OnnxBackend:
    backend = load_backend(folder, manifest, ComputeSettings(threads=1, **settings))
    assert isinstance(backend, OnnxBackend)
    return backend


@pytest.mark.parametrize("int_type", [TensorProto.INT64, TensorProto.INT32])
def test_scores_come_in_the_batchs_order(tmp_path: Path, int_type: int) -> None:
    backend = load(write(tmp_path, int_type=int_type))
    assert backend.max_padded_tokens > 0
    assert backend.score(batch([1], [1, 2, 3, 4, 5], [10], [2, 2])).tolist() == [1, 15, 10, 4]
    assert backend.score(batch()).shape == (0,)


def test_the_labels_logit_is_the_score_squashed_only_when_the_manifest_says_so(tmp_path: Path) -> None:
    folder = write(tmp_path)
    assert load(folder, Manifest("onnx", label_index=1)).score(batch([3])).tolist() == [-3]
    squashed = load(folder, Manifest("onnx", transform="sigmoid")).score(batch([3], [0], [90]))
    np.testing.assert_allclose(squashed, [1 / (1 + np.exp(-3)), 0.5, 1.0])
    with pytest.raises(WeightsMismatch, match="label_index is 2, and the head has 2 outputs"):
        load(folder, Manifest("onnx", label_index=2))


def test_type_ids_and_positions_are_given_to_those_who_ask(tmp_path: Path) -> None:
    folder = write(tmp_path, inputs=("input_ids", "token_type_ids", "position_ids", "attention_mask"))
    backend = load(folder)
    assert backend.score(batch([1, 1, 1], [5])).tolist() == [3 + 0 + 1 + 2, 5]
    assert backend.score(batch([1, 1, 1], [5], type_ids=[[0, 1, 1], [1]])).tolist() == [3 + 2 + 3, 6]


def test_a_file_that_sees_neighbours_gets_one_item_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backend = load(write(tmp_path, counts_padding=True))
    assert backend.max_padded_tokens == 0
    assert "one item at a time" in caplog.text
    assert backend.score(batch([1], [1, 1, 1])).tolist() == [1 + 1, 3 + 3]


def test_a_file_without_a_mask_gets_one_item_a_run(tmp_path: Path) -> None:
    backend = load(write(tmp_path, inputs=("input_ids",)))
    assert backend.max_padded_tokens == 0
    assert backend.score(batch([1], [1, 1, 1])).tolist() == [1, 3]


def test_deterministic_means_one_item_a_run(tmp_path: Path) -> None:
    assert load(write(tmp_path), deterministic=True).max_padded_tokens == 0


def test_runs_hold_items_of_like_length_within_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = load(write(tmp_path))
    backend.max_padded_tokens = 8
    shapes = []
    compute = OnnxSession.logits

    def watched(self: OnnxSession, ids: Any, type_ids: Any, lengths: Any) -> Any:
        shapes.append(ids.shape)
        return compute(self, ids, type_ids, lengths)

    monkeypatch.setattr(OnnxSession, "logits", watched)
    backend.score(batch([1] * 20, [1], [1] * 4, [1], [1] * 3))
    assert shapes == [(1, 20), (2, 4), (2, 1)]


def test_an_item_that_is_not_finite_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = load(write(tmp_path))
    compute = OnnxSession.logits

    def poisoned(self: OnnxSession, ids: Any, type_ids: Any, lengths: Any) -> Any:
        found = compute(self, ids, type_ids, lengths)
        return np.full_like(found, np.nan) if 7 in ids else found

    monkeypatch.setattr(OnnxSession, "logits", poisoned)
    scores = backend.score(batch([1], [7], [2]))
    assert (scores[0], scores[2], np.isnan(scores[1])) == (1, 2, True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inputs": ("input_ids", "pixel_values")}, "takes an input 'pixel_values'"),
        ({"shape": (1, 128)}, "fixed shape"),
        ({"output": "last_hidden_state", "inputs": ("input_ids", "attention_mask")}, None),
    ],
)
def test_files_of_another_form_are_refused(tmp_path: Path, changes: dict[str, Any], said: str | None) -> None:
    folder = write(tmp_path, **changes)
    if said is None:  # the only output, of the right shape: its name does not matter
        assert load(folder).score(batch([4])).tolist() == [4]
        return
    with pytest.raises(UnsupportedArtifact, match=said):
        load(folder)


def test_what_onnxruntime_cannot_open_is_unreadable(tmp_path: Path) -> None:
    folder = write(tmp_path)
    model = onnx.load(folder / "model.onnx")
    model.graph.node[-1].op_type = "NoSuchOperator"
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(ArtifactUnreadable, match="ONNX Runtime cannot open"):
        load(folder)
    (folder / "model.onnx").write_bytes(b"PK\x03\x04 a zip")
    with pytest.raises(ArtifactUnreadable, match="no whole ONNX file"):
        load(folder)


def test_weights_outside_of_the_folder_are_refused_before_anything_reads_them(tmp_path: Path) -> None:
    folder = write(tmp_path / "version", weights=[1.0] * 400)
    model = onnx.load(folder / "model.onnx")
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="weights", size_threshold=1024)
    load(folder)
    for entry in (entry for tensor in model.graph.initializer for entry in tensor.external_data):
        if entry.key == "location":
            entry.value = "../weights"
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "weights").write_bytes((folder / "weights").read_bytes())
    with pytest.raises(UnsupportedArtifact, match="only files beside it are read"):
        load(folder)


def test_a_gpu_that_is_not_there_is_said_and_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UnsupportedArtifact, match="a build without CUDA"):
        load(folder, device="cuda:0")
    for device in ("mps", "cuda:first"):
        with pytest.raises(UnsupportedArtifact, match="computed on cpu, cuda or cuda:N"):
            load(folder, device=device)


@pytest.mark.skipif(
    (torch.version.cuda or "").split(".")[0] != onnxruntime.cuda_version.split(".")[0],
    reason=f"torch {torch.__version__} does not bring along the CUDA libraries of ONNX Runtime",
)
def test_the_cuda_libraries_of_the_provider_are_installed(capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime.preload_dlls()  # which needs no GPU, and prints what it does not find
    assert capsys.readouterr().out == ""


def test_a_provider_that_falls_back_to_the_cpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path)
    monkeypatch.setattr("rm_server.backends.onnx.session._providers", lambda device: ["CPUExecutionProvider"])
    with pytest.raises(UnsupportedArtifact, match="could only start CPUExecutionProvider"):
        load(folder, device="cuda")


@pytest.mark.parametrize(
    "said",
    [
        "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
    ],
)
def test_want_of_memory_is_an_error_of_its_own(tmp_path: Path, said: str) -> None:
    backend = load(write(tmp_path))

    class Full:
        def io_binding(self) -> Any:
            return type("Binding", (), {"bind_ortvalue_input": lambda *_: None, "bind_output": lambda *_: None})()

        def run_with_iobinding(self, binding: Any) -> None:
            raise RuntimeError(said)

    backend._session._session = Full()
    with pytest.raises(OutOfMemory, match="1 items padded to 2 tokens"):
        backend.score(batch([1, 2]))


def test_want_of_memory_for_the_inputs_is_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = load(write(tmp_path))

    def fail(*_: Any) -> Any:
        raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")

    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", fail)
    with pytest.raises(OutOfMemory, match="1 items padded to 2 tokens"):
        backend.score(batch([1, 2]))
