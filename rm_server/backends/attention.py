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

from rm_server.backends import attention_cuda, attention_loop
from rm_server.backends.layout import FlatLayout

PACKED_ATTENTION = "rm_packed"

# What some architectures ask of attention beyond scale, causality and a window. No kernel here does it, so such a
# model fails its self-check and is served padded.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "cache")


class NotPackable(Exception):
    """The architecture wants something of attention that the packed one does not do."""


@dataclass(slots=True)
class Attending:
    """A forward under way: its layout, what its layers have in common, and how often they asked."""

    layout: FlatLayout
    memo: dict[Any, torch.Tensor] = field(default_factory=dict)
    num_calls: int = 0
    num_windowed: int = 0


_attending: ContextVar[Attending] = ContextVar("attending")


@contextmanager
def attending(layout: FlatLayout) -> Iterator[Attending]:
    """Makes ``layout`` the one that attention follows, in this thread, while the block runs."""
    state = Attending(layout)
    token = _attending.set(state)
    try:
        yield state
    finally:
        _attending.reset(token)


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
    state.num_calls += 1
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    if sliding_window is not None:
        state.num_windowed += 1
    attend = attention_cuda.attend if attention_cuda.can_attend(query, state.layout) else attention_loop.attend
    return attend(state.layout, state.memo, query, key, value, causal, sliding_window, scaling), None


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
