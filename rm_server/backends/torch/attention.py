"""Attention over a flat batch: each item among its own tokens, registered with transformers as one more implementation.

transformers calls it from inside the untouched model; which tokens belong together it learns from the layout of the
forward under way in this thread (`attending`). No mask function is registered on purpose: transformers then asks for
no mask at all, where it would otherwise look through the positions for packed items, with a wait for the GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface

from rm_server.backends.items import Int32Array
from rm_server.backends.torch import attention_cuda, attention_loop
from rm_server.backends.torch.layout import FlatLayout, ReadPosition

PACKED_ATTENTION = "rm_packed"

# What some architectures ask of attention beyond scale, causality and a window. No kernel here does it, so such a
# model fails its self-check and is served padded.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "cache")


class NotPackable(Exception):
    """The architecture wants something of attention that the packed one does not do."""


class KeysFound(Exception):
    """No error: what ends a pass that was made for a layer's keys and values alone."""

    def __init__(self, key: torch.Tensor, value: torch.Tensor) -> None:
        super().__init__()
        self.key = key
        self.value = value


@dataclass(frozen=True, slots=True)
class Reading:
    """What the head reads of the last layer's tokens.

    ``rows`` has shape (num_rows,): one of each item, in order, and then any others. ``owners``: as in `Batch`.
    """

    rows: torch.Tensor
    position: ReadPosition
    num_items: int
    owners: Int32Array | None


@dataclass(slots=True)
class Attending:
    """A forward under way: its layout, what its layers have in common, and how often they asked.

    ``reading``: what of its last layer's tokens is computed; None: all. ``is_for_keys``: a layer's pass ends at its
    attention, with KeysFound. ``kept``: keys and values found so, for the queries of the tokens that are read.
    """

    layout: FlatLayout
    reading: Reading | None = None
    memo: dict[Any, Any] = field(default_factory=dict)
    num_calls: int = 0
    num_windowed: int = 0
    is_for_keys: bool = False
    kept: tuple[torch.Tensor, torch.Tensor] | None = None


_attending: ContextVar[Attending | None] = ContextVar("attending", default=None)


@contextmanager
def attending(layout: FlatLayout, reading: Reading | None) -> Iterator[Attending]:
    """Makes ``layout`` the one that attention follows, in this thread, while the block runs."""
    state = Attending(layout, reading)
    token = _attending.set(state)
    try:
        yield state
    finally:
        _attending.reset(token)


def attending_now() -> Attending | None:
    """The flat forward under way in this thread, if there is one."""
    return _attending.get()


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function over a flat batch.

    ``query`` has shape (1, num_heads, total_tokens, head_dim), ``key`` and ``value`` (1, num_key_heads, …); the result
    (1, total_tokens, num_heads, head_dim). A ``sliding_window`` of w lets a token see itself and w - 1 tokens before
    it (without causality, also w - 1 after it), as transformers' flash attention reads the number.
    """
    unsupported = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if unsupported or attention_mask is not None:
        raise NotPackable(f"{type(module).__name__} asks for {', '.join(unsupported) or 'a mask of its own'}")
    state = _attending.get()
    assert state is not None, "packed attention is for flat forwards"
    if state.is_for_keys:
        raise KeysFound(key, value)
    state.num_calls += 1
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    if sliding_window is not None:
        state.num_windowed += 1
    if state.kept is not None and state.reading is not None:
        keys = state.layout.read_keys(state.reading.position, sliding_window)
        return attention_loop.attend_where_read(keys, query, *state.kept, scaling), None
    arguments = state.layout, state.memo, query, key, value, causal, sliding_window, scaling
    if (kernel := attention_cuda.find_kernel(query, key, value)) is not None:
        return attention_cuda.attend(kernel, *arguments), None
    return attention_loop.attend(*arguments), None


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
