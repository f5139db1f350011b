"""How many floating-point operations a forward pass is. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """A Llama-like decoder: gated MLP, ``num_key_heads`` heads of keys and values, all of ``head_dim``."""

    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_key_heads: int
    head_dim: int

    @property
    def weights_per_layer(self) -> int:
        """Entries of the matrices that every token goes through: four in attention, three in the MLP."""
        attention = 2 * self.hidden * self.head_dim * (self.num_heads + self.num_key_heads)
        return attention + 3 * self.hidden * self.intermediate


def shape_of(config: object) -> DecoderShape:
    """From transformers' config of a Llama."""
    hidden, heads = _whole(config, "hidden_size"), _whole(config, "num_attention_heads")
    return DecoderShape(
        num_layers=_whole(config, "num_hidden_layers"),
        hidden=hidden,
        intermediate=_whole(config, "intermediate_size"),
        num_heads=heads,
        num_key_heads=_whole(config, "num_key_value_heads"),
        head_dim=getattr(config, "head_dim", None) or hidden // heads,
    )


def matmul_flops(rows: int, inner: int, columns: int) -> int:
    """Of (rows × inner) times (inner × columns): a multiplication and an addition for each entry of the sum."""
    return 2 * rows * inner * columns


def forward_flops(shape: DecoderShape, lengths: Iterable[int]) -> int:
    """Of a forward over items of these lengths in tokens, without padding.

    Counted are the products of the layers and of causal attention (a token with itself and those before it, for
    queries with keys and for weights with values); not counted are embedding, norms, softmax and the head.
    """
    total = 0
    for length in lengths:
        seen = length * (length + 1) // 2
        linear = 2 * length * shape.weights_per_layer
        attention = 2 * (2 * seen * shape.num_heads * shape.head_dim)
        total += shape.num_layers * (linear + attention)
    return total


def _whole(config: object, name: str) -> int:
    return int(getattr(config, name))
