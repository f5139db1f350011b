"""Rotary positions whose frequencies change with the length of the text: which items may share a forward."""

from __future__ import annotations

from typing import Any

import torch

from rm_server.backends.checkpoint import Config

_LENGTH_DEPENDENT = ("dynamic", "longrope")
_LONGEST_SEEN = "max_seq_len_cached"


def shared_forward_limit(config: Config) -> int | None:
    """The longest item that may share a forward with others; None where any may.

    Dynamic and long RoPE look at the longest text of a forward: up to the original length all use the same frequencies,
    beyond it each length has its own, so such an item is computed alone.
    """
    text_config = config.get_text_config()
    limits = [
        min(
            part.get("original_max_position_embeddings") or text_config.max_position_embeddings,
            text_config.max_position_embeddings,
        )
        for part in length_dependent(config)
    ]
    return min(limits, default=None)


def length_dependent(config: Config) -> list[dict[str, Any]]:
    """The parameters of those frequencies that change with the length: of all layers, or of each kind of layers."""
    parameters: dict[str, Any] = getattr(config.get_text_config(), "rope_parameters", None) or {}
    by_layer = [part for part in parameters.values() if isinstance(part, dict)]
    return [part for part in [parameters, *by_layer] if part.get("rope_type") in _LENGTH_DEPENDENT]


class FreshFrequencies:
    """Puts a model's rotary frequencies back to what they were when it was new.

    transformers keeps the frequencies of the longest text seen so far, and so lets a score depend on earlier ones.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._modules = [
            (
                module,
                {name: buffer.clone() for name, buffer in module.named_buffers(recurse=False)},
                _longest_seen(module),
            )
            for module in model.modules()
            if hasattr(module, _LONGEST_SEEN)
        ]

    def restore(self) -> None:
        """To be called before each forward of a length-dependent model."""
        for module, buffers, attributes in self._modules:
            for name, buffer in buffers.items():
                module.register_buffer(name, buffer.clone(), persistent=False)
            # Where kinds of layers have frequencies of their own, each comes to have a longest text with its first one.
            for name in _longest_seen(module).keys() - attributes:
                delattr(module, name)
            for name, value in attributes.items():
                setattr(module, name, value)


def _longest_seen(module: torch.nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name.endswith(_LONGEST_SEEN)}
