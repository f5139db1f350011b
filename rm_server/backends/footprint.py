"""What a version will take in memory, read from its files' headers before anything is loaded. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rm_server.backends.interface import ComputeSettings, SharedMemory
from rm_server.errors import ArtifactUnreadable
from rm_server.registry.layout import ADAPTER_WEIGHTS, version_files
from rm_server.registry.lora import base_folder
from rm_server.registry.manifest import KINDS_WITHOUT_WEIGHTS, Manifest

# More tokens than this gain nothing in one forward, and its intermediate results take memory.
MAX_FORWARD_TOKENS = 8192
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
_TYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}

# How many vectors of a layer's width, and of its inner width, are alive at once in a forward: input, residual, queries,
# keys, values, attention's result; gate, up and their product.
_NUM_HIDDEN = 6
_NUM_INNER = 3


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes in one worker. ``own_bytes``: as long as it is loaded, beside what it shares. ``loading_bytes``: more than
    that, only while it is loaded. ``working_bytes``: of a forward; those of several versions are never alive at once.
    """

    own_bytes: int = 0
    shared: SharedMemory | None = None
    loading_bytes: int = 0
    working_bytes: int = 0


def footprint(folder: Path, manifest: Manifest, settings: ComputeSettings, max_batch_tokens: int) -> Footprint:
    """An estimate from sizes and shapes. Rules and composites take next to nothing.

    Raises ArtifactUnreadable, UnsupportedArtifact for files that are not what their names say.
    """
    if manifest.kind in KINDS_WITHOUT_WEIGHTS:
        return Footprint()
    if manifest.kind == "onnx":
        paths = version_files(folder, "onnx")
        size = sum((folder / path).stat().st_size for path in paths if path.suffix != ".json")
        return Footprint(size, None, size, _working_bytes(_config(folder), settings, max_batch_tokens))
    checkpoint = base_folder(folder) if manifest.kind == "lora" else folder
    shapes = [
        shape
        for path in version_files(checkpoint, "sequence_classification")
        if path.suffix == ".safetensors"
        for shape in _shapes(checkpoint / path)
    ]
    weights = sum(map(math.prod, shapes)) * _TYPE_BYTES[settings.precision]
    config = _config(checkpoint)
    # Each weight is copied out of its file. Those of layers are then checked in fp32, and prepacked, one by one: the
    # one in work, and what the one before it has left. What files have apart, as experts, may be one of these.
    # Embeddings stay as they are.
    num_layers = _first(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers") or 1
    of_layers = [math.prod(shape) for shape in shapes if shape[:1] != [config.get("vocab_size")]]
    copied = _TYPE_BYTES[settings.precision] * max(map(math.prod, shapes), default=0)
    loading = max(copied, 2 * 4 * max([sum(of_layers) // num_layers, *of_layers]))
    working = _working_bytes(config, settings, max_batch_tokens)
    if manifest.kind != "lora":
        return Footprint(weights, None, loading, working)
    own = parameters_of(folder / ADAPTER_WEIGHTS) * _TYPE_BYTES[settings.precision]
    name = shared_name(folder, checkpoint, settings)
    return Footprint(own, SharedMemory(name, weights), loading, working)


def shared_name(adapter: Path, base: Path, settings: ComputeSettings) -> str:
    """Of the memory that an adapter shares: with those over the same base that replace the same modules of it.

    Raises ArtifactUnreadable.
    """
    entries = _header(adapter / ADAPTER_WEIGHTS).items()
    whole = sorted(
        f"{name.replace('.modules_to_save.', '.')} {entry['shape']}" for name, entry in entries if "lora_" not in name
    )
    own = hashlib.sha256("\n".join(whole).encode()).hexdigest()[:8] if whole else ""
    return " ".join(filter(None, (base.resolve().name, settings.precision, own)))


def parameters_of(path: Path) -> int:
    """How many numbers a safetensors file holds. Raises ArtifactUnreadable."""
    return sum(map(math.prod, _shapes(path)))


def types_of(path: Path) -> dict[str, str]:
    """The types of a safetensors file's numbers, ``BF16`` say, by the tensors' names. Raises ArtifactUnreadable."""
    return {name: entry["dtype"] for name, entry in _header(path).items()}


def _shapes(path: Path) -> list[list[int]]:
    return [entry["shape"] for entry in _header(path).values()]


def _header(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file by name, each with its ``shape`` and ``dtype``."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"its header has {length} bytes")
            header = json.loads(file.read(length))
        # An empty tensor is none; to ask shows, besides, whether the shapes are shapes.
        return {name: entry for name, entry in header.items() if name != "__metadata__" and math.prod(entry["shape"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactUnreadable(f"{path} is no safetensors file: {error}") from error


def _config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactUnreadable(f"{folder / 'config.json'} cannot be read: {error}") from error
    return {**config, **(config.get("text_config") or {})}


def _working_bytes(config: dict[str, Any], settings: ComputeSettings, max_batch_tokens: int) -> int:
    hidden = _first(config, "hidden_size", "n_embd", "dim", "d_model")
    inner = _first(config, "intermediate_size", "n_inner", "hidden_dim", "d_ff") or 4 * hidden
    width = _NUM_HIDDEN * hidden + _NUM_INNER * inner
    return min(max_batch_tokens, MAX_FORWARD_TOKENS) * width * max(2, _TYPE_BYTES[settings.precision])


def _first(config: dict[str, Any], *names: str) -> int:
    return next((value for name in names if isinstance(value := config.get(name), int)), 0)
