"""Backbones of BERT's kind without the calls between their modules: the same products in the same order.

A layer of transformers is seventeen modules that call each other, and around them are more. That takes a tenth of one
item's forward on a CPU, a sixth in bf16, and nothing to speak of in a full batch. There it helps that what follows a
product (GELU, the sum with what was before) is computed with it: by 3 % in fp32, 4 to 8 % in bf16.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any
from weakref import ref

import torch
from transformers.activations import GELUActivation

from rm_server.backends.torch.attention import attending_now, packed_attention
from rm_server.backends.torch.last_layer import rows_that_are_read
from rm_server.backends.torch.linear import PrepackedLinear

_KINDS = ("BertModel", "CamembertModel", "ElectraModel", "RobertaModel", "XLMRobertaModel")


def shorten(backbone: Any, last_layer: torch.nn.Module | None) -> bool:
    """Has the backbone compute itself so, if it is of a kind that is known. For flat forwards only.

    What its layers consist of may be swapped afterwards. ``last_layer``: the one that computes what `attending` says is
    read; None: all of them compute all.
    """
    if type(backbone).__name__ not in _KINDS or backbone.config.is_decoder:
        return False
    layers = list(backbone.encoder.layer)
    for layer in layers:
        function = _layer_where_read if layer is last_layer else _layer
        parts = layer.attention.self, layer.attention.output, layer.intermediate, layer.output
        layer.forward = partial(function, *parts)
    # A reference that does not count: a model goes with its last one, and nobody looks for cycles.
    backbone.forward = partial(_backbone, ref(backbone), layers)
    return True


def lengthen(backbone: Any) -> None:
    """Gives backbone and layers their own forwards back."""
    del backbone.forward
    for layer in backbone.encoder.layer:
        del layer.forward


# Below, modules are not called, their forward is: a call looks for hooks, of which there are none.


def _backbone(reference: ref[Any], layers: list[Any], **inputs: Any) -> SimpleNamespace:
    """``inputs``: what the embeddings take, and ``use_cache``."""
    backbone = reference()
    assert backbone is not None, "who calls it has it"
    inputs.pop("use_cache", None)
    hidden = backbone.embeddings.forward(**inputs)
    if hasattr(backbone, "embeddings_project"):  # ELECTRA's may be narrower than its layers
        hidden = backbone.embeddings_project.forward(hidden)
    for layer in layers:
        hidden = layer.forward(hidden)
    return SimpleNamespace(last_hidden_state=hidden)


def _layer(own: Any, attended: Any, intermediate: Any, output: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Hidden states, shape (1, num_tokens, hidden_size) like ``hidden``."""
    context = _attention(own, *_projected(own, hidden))
    return _after_attention(attended, intermediate, output, context, hidden)


def _layer_where_read(own: Any, attended: Any, intermediate: Any, output: Any, hidden: torch.Tensor) -> torch.Tensor:
    """As `_layer`, of the rows that are read: shape (1, num_rows, hidden_size). Of the others, keys and values."""
    state = attending_now()
    if state is None or (reading := state.reading) is None:
        return _layer(own, attended, intermediate, output, hidden)
    query, key, value = _projected(own, hidden)
    with rows_that_are_read(state, reading, key, value):
        context = _attention(own, query.index_select(2, reading.rows), key, value)
        return _after_attention(attended, intermediate, output, context, hidden.index_select(1, reading.rows))


def _projected(own: Any, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values, each of shape (1, num_heads, num_tokens, head_dim)."""
    shape = (*hidden.shape[:2], -1, own.attention_head_size)
    return tuple(linear.forward(hidden).view(shape).transpose(1, 2) for linear in (own.query, own.key, own.value))


def _attention(own: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return packed_attention(own, query, key, value, None, scaling=own.scaling, is_causal=False)[0]


def _after_attention(
    attended: Any, intermediate: Any, output: Any, context: torch.Tensor, hidden: torch.Tensor
) -> torch.Tensor:
    states = attended.LayerNorm.forward(_sum(attended.dense, context.reshape(hidden.shape), hidden))
    wide = _activated(intermediate.dense, intermediate.intermediate_act_fn, states)
    result: torch.Tensor = output.LayerNorm.forward(_sum(output.dense, wide, states))
    return result


def _sum(linear: Any, x: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = linear.plus(x, states) if type(linear) is PrepackedLinear else linear.forward(x).add_(states)
    return y


def _activated(linear: Any, activation: Any, x: torch.Tensor) -> torch.Tensor:
    is_gelu = type(linear) is PrepackedLinear and type(activation) is GELUActivation
    y: torch.Tensor = linear.gelu(x) if is_gelu else activation.forward(linear.forward(x))
    return y
