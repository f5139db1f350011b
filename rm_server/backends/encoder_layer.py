"""Layers of BERT's kind in one function: the same products without the calls between their modules.

A layer of transformers is seventeen modules that call each other. That takes a tenth of one item's forward in bf16 on a
CPU, and nothing to speak of in a full batch.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from rm_server.backends.attention import attending_now, packed_attention
from rm_server.backends.owned_rows import shared_out

_KINDS = ("BertLayer", "CamembertLayer", "ElectraLayer", "RobertaLayer", "XLMRobertaLayer")


def shorten(layer: Any, *, reads_only: bool = False) -> bool:
    """Has the layer compute itself in one function, if it is of a kind that is known. For flat forwards only.

    What it consists of may be swapped afterwards. ``reads_only``: it computes what `attending` says is read.
    """
    if type(layer).__name__ not in _KINDS or getattr(layer, "is_decoder", False):
        return False
    function = _where_read if reads_only else _forward
    layer.forward = partial(function, layer.attention.self, layer.attention.output, layer.intermediate, layer.output)
    return True


def lengthen(layer: Any) -> None:
    """Gives the layer its own forward back."""
    del layer.forward


# Below, modules are not called, their forward is: a call looks for hooks, of which there are none.


def _forward(own: Any, attended: Any, intermediate: Any, output: Any, hidden: torch.Tensor, *_: Any, **__: Any) -> Any:
    """Hidden states, shape (1, num_tokens, hidden_size) like ``hidden``."""
    context = _attention(own, *_projected(own, hidden))
    return _after_attention(attended, intermediate, output, context, hidden)


def _where_read(
    own: Any, attended: Any, intermediate: Any, output: Any, hidden: torch.Tensor, *_: Any, **__: Any
) -> Any:
    """As `_forward`, of the rows that are read: shape (1, num_rows, hidden_size). Of the others, keys and values."""
    state = attending_now()
    if state is None or (reading := state.reading) is None:
        return _forward(own, attended, intermediate, output, hidden)
    query, key, value = _projected(own, hidden)
    state.kept = key, value
    try:
        with shared_out(reading.owners, range(1, reading.num_items + 1), len(reading.rows)):
            context = _attention(own, query.index_select(2, reading.rows), key, value)
            return _after_attention(attended, intermediate, output, context, hidden.index_select(1, reading.rows))
    finally:
        state.kept = None


def _projected(own: Any, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values, each of shape (1, num_heads, num_tokens, head_dim)."""
    shape = (*hidden.shape[:2], -1, own.attention_head_size)
    return tuple(linear.forward(hidden).view(shape).transpose(1, 2) for linear in (own.query, own.key, own.value))


def _attention(own: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return packed_attention(own, query, key, value, None, scaling=own.scaling, is_causal=False)[0]


def _after_attention(
    attended: Any, intermediate: Any, output: Any, context: torch.Tensor, hidden: torch.Tensor
) -> torch.Tensor:
    states = attended.dense.forward(context.reshape(hidden.shape))
    states = attended.LayerNorm.forward(states.add_(hidden))
    wide = intermediate.intermediate_act_fn.forward(intermediate.dense.forward(states))
    result: torch.Tensor = output.LayerNorm.forward(output.dense.forward(wide).add_(states))
    return result
