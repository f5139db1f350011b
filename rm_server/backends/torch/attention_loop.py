"""Attention item by item, with torch's own kernels on views of the flat tensors: the way of the CPU.

Measured there against a block-diagonal mask, items of one length together, plain matrix products and compiled
FlexAttention: nothing was faster. Inputs have shape (1, heads, total_tokens, head_dim), results (1, total_tokens,
heads, head_dim).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch.nn.functional import scaled_dot_product_attention

from rm_server.backends.torch.layout import FlatLayout, Range

# Queries that see a window are taken in blocks of so many, each with the keys in its reach.
_QUERY_BLOCK = 128
# fp32 numbers in the widest vector register (AVX-512); the CPU kernel's softmax works in fp32 for every type.
_VECTOR = 16
# Beyond this many keys, those that stick out of the last vector are too few to matter.
_LONGEST_RAGGED = 480

FLASH_HEAD_DIM = 256
"""Flash attention on a GPU takes heads up to this size, if values have that of keys (DeepSeek's are smaller)."""

Memo: TypeAlias = dict[Any, torch.Tensor]
"""Tensors that the layers of one forward have in common: here, masks."""


def attend(
    layout: FlatLayout,
    memo: Memo,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    causal: bool,
    window: int | None,
    scale: float | None,
) -> torch.Tensor:
    """Each segment of the layout attends within itself, and to its shared prefix where it has one.

    On a CPU all tokens after a shared prefix attend to it in one call without a mask, and each segment to itself in
    another, see `share_of`. Elsewhere each segment gets a copy of its prefix's keys.
    """
    num_heads, num_tokens = query.shape[1], query.shape[2]
    on_cpu = query.device.type == "cpu" and query.shape[3] == value.shape[3]
    if on_cpu and window is None and len(layout.segments) == 1:
        # What lies behind the only segment may be computed with it: then the result is there, and nothing is copied.
        return _on_cpu(memo, query, key, value, (0, num_tokens), layout.segments[0], causal, scale)[0].transpose(1, 2)
    output = query.new_empty(1, num_tokens, num_heads, value.shape[3])
    weights = torch.empty(1, num_heads, num_tokens) if layout.shared else None
    prefixes = {} if on_cpu else layout.prefixes()
    for start, end in layout.segments:
        if window is not None and end - start > window:
            q, k, v = query[:, :, start:end], key[:, :, start:end], value[:, :, start:end]
            part = _windowed(memo, q, k, v, causal, window, scale)
        elif (start, end) in prefixes:
            part = _after_prefix(memo, query, key, value, prefixes[start, end], (start, end), causal, scale)
        elif on_cpu:
            part, part_weights = _on_cpu(memo, query, key, value, (start, end), (start, end), causal, scale)
            if weights is not None:
                weights[:, :, start:end] = part_weights
        else:
            q, k, v = query[:, :, start:end], key[:, :, start:end], value[:, :, start:end]
            part = _fused(q, k, v, is_causal=causal, scale=scale)
        output[:, start:end] = part.transpose(1, 2)
    output[:, layout.segments[-1][1] :] = 0  # no numbers that happen to lie there
    for shared in layout.shared if on_cpu else ():
        assert weights is not None
        start, end = shared.queries
        part, part_weights = _on_cpu(memo, query, key, value, shared.queries, shared.keys, False, scale)
        share = share_of(part_weights, weights[:, :, start:end])
        output[:, start:end].lerp_(part.transpose(1, 2), share.transpose(1, 2).unsqueeze(-1).to(output.dtype))
    return output


def share_of(log_sum_exp: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """How much attention to some keys counts in attention to these and others together, by their log-sum-exps.

    So flash decoding merges its splits: it is the softmax over all of them.
    """
    return torch.sigmoid(log_sum_exp - other)


def attend_where_read(
    keys: Sequence[Sequence[Range]],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float | None,
) -> torch.Tensor:
    """One query an item, which sees the ranges ``keys`` of its item; to queries beyond these, zeros are given."""
    output = query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])
    for index, ranges in enumerate(keys):
        k, v = (
            torch.cat([states[:, :, start:end] for start, end in ranges], dim=2)
            if len(ranges) > 1
            else states[:, :, slice(*ranges[0])]
            for states in (key, value)
        )
        part = scaled_dot_product_attention(query[:, :, index : index + 1], k, v, scale=scale, enable_gqa=True)
        output[:, index : index + 1] = part.transpose(1, 2)
    return output


def _on_cpu(
    memo: Memo,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    queries: Range,
    keys: Range,
    causal: bool,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's CPU kernel: results, shape (1, heads, queries, head_dim), and their log-sum-exp, (1, heads, queries).

    It handles the last keys of a row one by one, so the keys are extended to a whole number of vectors, into what lies
    behind them; that takes a tenth to a third less time. What was added has no say: causality hides it, else a mask of
    -inf, whose weight is exactly 0.
    """
    first, last = keys
    length = last - first
    extended = length + -length % _VECTOR
    mask = None
    if length > _LONGEST_RAGGED or first + extended > key.shape[2]:
        extended = length
    elif extended > length and not causal:
        if (length, extended) not in memo:
            memo[length, extended] = torch.zeros(1, 1, 1, extended, dtype=query.dtype)
            memo[length, extended][..., length:] = float("-inf")
        mask = memo[length, extended]
    k, v = key[:, :, first : first + extended], value[:, :, first : first + extended]
    output, log_sum_exp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
        query[:, :, slice(*queries)], k, v, 0.0, causal, attn_mask=mask, scale=scale
    )
    return output, log_sum_exp


def _fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **how: Any) -> torch.Tensor:
    """torch's attention by a kernel that keeps no weights. ``how``: its other arguments.

    Of those for a GPU it is flash that lets heads share keys, and it takes neither fp32 nor a mask, nor all sizes. With
    no kernel torch would, silently, hold heads × queries × keys weights; so there each head gets keys of its own.
    """
    groups = query.shape[1] // key.shape[1]
    is_for_flash = (
        query.dtype != torch.float32
        and how.get("attn_mask") is None
        and query.shape[3] == value.shape[3] <= FLASH_HEAD_DIM
    )
    if groups > 1 and query.is_cuda and not is_for_flash:
        key, value, groups = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), 1
    return scaled_dot_product_attention(query, key, value, enable_gqa=groups > 1, **how)


def _after_prefix(
    memo: Memo,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prefix: Range,
    segment: Range,
    causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """One segment, which sees its prefix and itself."""
    (first, last), (start, end) = prefix, segment
    k, v = (torch.cat([states[:, :, first:last], states[:, :, start:end]], dim=2) for states in (key, value))
    shape = (end - start, k.shape[2], last - first, k.shape[2], 0 if causal else k.shape[2])
    if shape not in memo:
        memo[shape] = _window_mask(*shape).to(query.device, query.dtype)
    return _fused(query[:, :, start:end], k, v, attn_mask=memo[shape], scale=scale)


def _windowed(
    memo: Memo,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    causal: bool,
    window: int,
    scale: float | None,
) -> torch.Tensor:
    """One item that is longer than its window, in blocks of queries."""
    length, reach = query.shape[2], window - 1
    parts = []
    for start in range(0, length, _QUERY_BLOCK):
        end = min(length, start + _QUERY_BLOCK)
        first, last = max(0, start - reach), end if causal else min(length, end + reach)
        shape = (end - start, last - first, start - first, reach, 0 if causal else reach)
        if shape not in memo:
            memo[shape] = _window_mask(*shape).to(query.device, query.dtype)
        parts.append(
            _fused(
                query[:, :, start:end],
                key[:, :, first:last],
                value[:, :, first:last],
                attn_mask=memo[shape],
                scale=scale,
            )
        )
    return torch.cat(parts, dim=2)


def _window_mask(num_queries: int, num_keys: int, offset: int, back: int, ahead: int) -> torch.Tensor:
    """Additive mask, shape (num_queries, num_keys): query i stands at key offset + i, sees back before, ahead after."""
    distance = torch.arange(num_keys)[None, :] - torch.arange(offset, offset + num_queries)[:, None]
    return torch.zeros(num_queries, num_keys).masked_fill_((distance < -back) | (distance > ahead), float("-inf"))
