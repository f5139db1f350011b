"""A LoRA adapter's files as peft writes them, read as data: what is added to which layer, and the trained head.

W x becomes W x + s B A x, with s = alpha / r, or alpha / √r for rank-stabilised adapters (Hu et al., "LoRA: Low-Rank
Adaptation of Large Language Models", 2021; Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with
LoRA", 2023).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from rm_server.backends.json_file import first_line, read_json
from rm_server.errors import ArtifactUnreadable, UnsupportedArtifact, WeightsMismatch
from rm_server.registry.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS

_PREFIX = "base_model.model."
_LORA_WEIGHT = re.compile(r"(?P<layer>.+)\.lora_(?P<which>[AB])\.weight")
# What an adapter may say besides ranks and scales: with any other value it computes something else than the formula.
_EXPECTED: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva", None),
}
_OFF = (
    *("use_dora", "use_qalora", "use_bdlora", "lora_bias", "layer_replication", "target_parameters"),
    *("trainable_token_indices", "alora_invocation_tokens", "monteclora_config", "velora_config", "megatron_config"),
    *("arrow_config", "lora_ga_config"),
)


@dataclass(frozen=True, slots=True)
class Delta:
    """What is added to a layer's output: ``b @ (a @ x)``. ``a``: (rank, in_features), ``b``: (out_features, rank).

    The scale is in ``b``.
    """

    a: torch.Tensor
    b: torch.Tensor


@dataclass(frozen=True, slots=True)
class Adapter:
    """In fp32 on the CPU. ``deltas``: by the layer's name in the model. ``saved``: whole weights, by name."""

    deltas: Mapping[str, Delta]
    saved: Mapping[str, torch.Tensor] = field(default_factory=dict)


def read_adapter(folder: Path) -> Adapter:
    """Reads an adapter. Raises ArtifactUnreadable, WeightsMismatch; UnsupportedArtifact where it is no plain LoRA."""
    path = folder / ADAPTER_WEIGHTS
    config = read_json(folder / ADAPTER_CONFIG)
    _check_kind(folder, config)
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ArtifactUnreadable(f"{path} cannot be read: {first_line(error)}") from error
    halves: dict[str, dict[str, torch.Tensor]] = {}
    saved: dict[str, torch.Tensor] = {}
    for key, weight in weights.items():
        name = key.removeprefix(_PREFIX)
        if (match := _LORA_WEIGHT.fullmatch(name)) is not None:
            halves.setdefault(match["layer"], {})[match["which"]] = weight.to(torch.float32, copy=True)
        elif "lora_" in name:
            raise UnsupportedArtifact(
                f"{path} has {key}; only low-rank additions to linear layers (lora_A, lora_B) are served. "
                "Merge the adapter into its base (peft's `merge_and_unload`) and register that."
            )
        else:
            saved[name.replace(".modules_to_save.", ".")] = weight.to(torch.float32, copy=True)
    if not halves:
        raise WeightsMismatch(f"{path} has no lora_A and lora_B weights; it was not saved by peft's `save_pretrained`.")
    return Adapter({layer: _delta(path, layer, parts, config) for layer, parts in halves.items()}, saved)


def _check_kind(folder: Path, config: Mapping[str, Any]) -> None:
    odd = [f"{name}={config.get(name)!r}" for name, values in _EXPECTED.items() if config.get(name) not in values]
    odd += [f"{name}={config[name]!r}" for name in _OFF if config.get(name)]
    if odd:
        raise UnsupportedArtifact(
            f"{folder / ADAPTER_CONFIG} says {', '.join(odd)}; plain LoRA on linear layers is served. "
            "Merge the adapter into its base (peft's `merge_and_unload`) and register that."
        )


def _delta(path: Path, layer: str, parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Delta:
    a, b = parts.get("A"), parts.get("B")
    if a is None or b is None or a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        shapes = {which: tuple(weight.shape) for which, weight in parts.items()}
        raise WeightsMismatch(f"{path}: lora_A and lora_B of {layer} do not fit together: {shapes}.")
    rank, alpha = a.shape[0], config.get("lora_alpha", 8)
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):  # as peft reads it, and like there the first one wins
            alpha = own
            break
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise UnsupportedArtifact(f"{path.parent / ADAPTER_CONFIG}: the alpha of {layer} is {alpha!r}, not a number.")
    return Delta(a, b * (alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)))
