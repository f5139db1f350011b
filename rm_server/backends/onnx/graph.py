"""A sequence classifier as an ONNX file: ids and mask in, logits out, an item's end found by its length.

transformers' own forward of a decoder looks for the pad id to find the end; an item that holds it would be cut. So the
backbone is exported with our pooling and the model's own head behind it. Needs the extra `onnx`.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from rm_server.backends.checkpoint import Config, Model
from rm_server.backends.json_file import first_line
from rm_server.backends.torch.pooling import SplitModel
from rm_server.backends.torch.rope import length_dependent
from rm_server.errors import InvalidRequest, UnsupportedArtifact

MAX_FILE_BYTES = 1_500_000_000
"""Above this the weights go into a file beside it: one protobuf message holds 2 GB at most."""

_EXAMPLE_LENGTHS = (20, 11, 4)
_SCOPES = "pkg.torch.onnx.name_scopes"
_BACKBONE = "backbone"
_INT8 = ("MatMulInteger", "QLinearMatMul", "MatMulIntegerToFloat")


def export_graph(model: Model, path: Path, *, opset: int | None = None) -> None:
    """Writes ``path``; ``model`` is in fp32 on the CPU and is used up. ``opset`` None: the exporter's own choice.

    Raises UnsupportedArtifact for an architecture that cannot be exported, InvalidRequest for an opset that does not go
    or where the packages are missing.
    """
    _require_packages()
    if rotary := length_dependent(model.config):
        raise UnsupportedArtifact(
            f"{type(model).__name__} with rope_type {rotary[0]['rope_type']!r} is not exported: where its tokens lie "
            "depends on how long the text is, which one graph cannot follow."
        )
    graph = _PaddedClassifier(model).eval()
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if graph.takes_type_ids else [])]
    try:
        with _quiet(), torch.inference_mode():
            program = torch.onnx.export(
                graph,
                _example(model.config, len(names)),
                dynamo=True,
                opset_version=opset,
                input_names=names,
                output_names=["logits"],
                dynamic_shapes=tuple({0: "num_items", 1: "num_tokens"} for _ in names),
                verbose=False,
            )
    except Exception as error:  # the exporter's errors have no common base
        raise UnsupportedArtifact(
            f"{type(model).__name__} cannot be exported to ONNX with torch {torch.__version__}"
            f"{f' and opset {opset}' if opset else ''}: {type(error.__cause__ or error).__name__}: "
            f"{first_line(error.__cause__ or error)}"
        ) from error
    assert program is not None
    exported = program.model.opset_imports.get("", 0)
    if opset is not None and exported != opset:
        raise InvalidRequest(f"Opset {opset} is asked for, and the graph needs {exported}; leave --opset out.")
    program.save(path, external_data=sum(tensor.nbytes for tensor in graph.parameters()) > MAX_FILE_BYTES)


def quantize_graph(source: Path, target: Path) -> int:
    """Turns the backbone's weight products into int8 and returns how many there are.

    Weights: symmetric, per output channel; activations: by the range that they have in the run (dynamic). The head
    stays in fp32: rounding there would make ties. Raises UnsupportedArtifact where there is nothing to quantize.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    weights = {tensor.name for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if _is_backbone_product(node, weights)]
    if not products:
        raise UnsupportedArtifact(f"{source} has no products with weights that could be computed in int8.")
    # A Gemm is taken apart first, and its product has another name then.
    names = [node.name if node.op_type == "MatMul" else f"{node.name}_MatMul" for node in products]
    # Shapes recorded before the exporter folded its transpositions contradict what onnx infers.
    del model.graph.value_info[:]
    with _quiet():
        quantize_dynamic(
            model,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_quantize=names,
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=_num_bytes(model) > MAX_FILE_BYTES,
        )
    quantized = [node for node in onnx.load(target, load_external_data=False).graph.node if node.op_type in _INT8]
    if len(quantized) != len(products):
        raise UnsupportedArtifact(
            f"Of {len(products)} products with weights in {source}, onnxruntime turned {len(quantized)} into int8."
        )
    return len(quantized)


def strip(source: Path, target: Path) -> None:
    """Copies a graph without the exporter's notes: they name this machine's folders, and would be in the digest."""
    import onnx

    model = onnx.load(source)
    for entry in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input):
        del entry.metadata_props[:]
        entry.doc_string = ""
    for entry in (*model.graph.output, *model.graph.initializer):
        del entry.metadata_props[:]
        entry.doc_string = ""
    _save(model, target)


class _PaddedClassifier(torch.nn.Module):
    """Padded ids, mask and type ids, each of shape (num_items, num_tokens), to logits (num_items, num_labels)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self._split = SplitModel(model)
        self.model = model
        self.backbone = self._split.backbone
        self._accepts = frozenset(inspect.signature(self.backbone.forward).parameters)
        type_vocab_size = getattr(model.config.get_text_config(), "type_vocab_size", 0) or 0
        self.takes_type_ids = "token_type_ids" in self._accepts and type_vocab_size > 1

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        if "use_cache" in self._accepts:
            inputs["use_cache"] = False
        hidden: torch.Tensor = self.backbone(**inputs).last_hidden_state
        lengths = attention_mask.sum(dim=1)
        if self._split.position == "first":
            pooled = hidden[:, 0]
        elif self._split.position == "last":
            pooled = hidden[torch.arange(hidden.shape[0]), lengths - 1]
        else:
            weights = attention_mask.to(hidden.dtype) / lengths.unsqueeze(1).to(hidden.dtype)
            pooled = (hidden * weights.unsqueeze(-1)).sum(dim=1)
        return self._split.head_logits(pooled)


def _example(config: Config, num_inputs: int) -> tuple[torch.Tensor, ...]:
    """Items of several lengths, so that nothing in the graph can rest on there being no padding."""
    num_tokens = max(_EXAMPLE_LENGTHS)
    vocab_size = config.get_text_config().vocab_size
    ids = torch.arange(len(_EXAMPLE_LENGTHS) * num_tokens).reshape(len(_EXAMPLE_LENGTHS), num_tokens) % vocab_size
    mask = (torch.arange(num_tokens)[None] < torch.tensor(_EXAMPLE_LENGTHS)[:, None]).long()
    return (ids, mask, torch.zeros_like(ids))[:num_inputs]


def _is_backbone_product(node: Any, weights: set[str]) -> bool:
    """A product with a weight on its right, within the backbone by the scopes that the exporter wrote down."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "")
    return node.op_type in ("MatMul", "Gemm") and node.input[1] in weights and f"'{_BACKBONE}'" in scopes


def _save(model: Any, path: Path) -> None:
    import onnx

    data = path.with_name(f"{path.name}.data")
    data.unlink(missing_ok=True)
    onnx.save_model(model, path, save_as_external_data=_num_bytes(model) > MAX_FILE_BYTES, location=data.name)


def _num_bytes(model: Any) -> int:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InvalidRequest(
            f"Exporting needs the package {error.name!r}: install the extra `onnx`, `pip install 'rm-service[onnx]'`."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints steps, and warns of its own inner workings; what matters comes as an exception."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "torch.export", "onnxscript", "")}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
