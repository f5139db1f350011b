"""Attention item by item, with torch's own kernels on views of the flat tensors: the way of the CPU.

Measured there against a block-diagonal mask, items of one length together, plain matrix products and compiled
FlexAttention: nothing was faster. Inputs have shape (1, heads, total_tokens, head_dim), results (1, total_tokens,
heads, head_dim).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from rm_server.backends.layout import FlatLayout

# Queries that see a window are taken in blocks of so many, each with the keys in its reach.
_QUERY_BLOCK = 128
# fp32 numbers in the widest vector register (AVX-512); the kernel's softmax works in fp32 for every type.
_VECTOR = 16
# Beyond this the keys that stick out are too few to matter.
_LONGEST_RAGGED = 480


def attend(
    layout: FlatLayout,
    memo: dict[Any, torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    causal: bool,
    window: int | None,
    scale: float | None,
) -> torch.Tensor:
    """Each segment of the layout attends within itself, and to its shared prefix where it has one.

    ``memo``: tensors that the layers of one forward have in common (here: the masks of windows).
    """
    if layout.shared:
        return _attend_with_prefixes(layout, query, key, value, scale)
    output = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    for start, end in layout.segments:
        q, k, v = query[:, :, start:end], key[:, :, start:end], value[:, :, start:end]
        if window is not None and end - start > window:
            part = _windowed(memo, q, k, v, causal, window, scale)
        elif query.device.type == "cpu" and _is_ragged(end - start, query.shape[2] - start):
            part = _with_whole_vectors(memo, query, key, value, start, end, causal, scale)
        else:
            part = scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=True)
        output[:, start:end] = part.transpose(1, 2)
    return output


def _is_ragged(length: int, num_tokens_left: int) -> bool:
    """Whether the item's keys end within a vector register, early enough to matter, with other tokens behind them."""
    return length % _VECTOR != 0 and length <= _LONGEST_RAGGED and length + -length % _VECTOR <= num_tokens_left


def _with_whole_vectors(
    memo: dict[Any, torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    start: int,
    end: int,
    causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """One item with its keys extended into its neighbour's, up to a whole number of vectors.

    torch's kernel handles the last keys of a row one by one; with whole vectors it takes a tenth to a third less time.
    The neighbour's keys have no say: causality hides them, else a mask of -inf (whose weight is exactly 0).
    """
    length = end - start
    extended = length + -length % _VECTOR
    mask = None
    if not causal:
        if (length, extended) not in memo:
            memo[length, extended] = torch.zeros(1, 1, 1, extended, dtype=query.dtype)
            memo[length, extended][..., length:] = float("-inf")
        mask = memo[length, extended]
    keys = slice(start, start + extended)
    return _flash(query[:, :, start:end], key[:, :, keys], value[:, :, keys], causal, scale, mask)[0]


def _windowed(
    memo: dict[Any, torch.Tensor],
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
            scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, first:last],
                value[:, :, first:last],
                attn_mask=memo[shape],
                scale=scale,
                enable_gqa=True,
            )
        )
    return torch.cat(parts, dim=2)


def _window_mask(num_queries: int, num_keys: int, offset: int, back: int, ahead: int) -> torch.Tensor:
    """Additive mask, shape (num_queries, num_keys): query i stands at key offset + i, sees back before, ahead after."""
    distance = torch.arange(num_keys)[None, :] - torch.arange(offset, offset + num_queries)[:, None]
    return torch.zeros(num_queries, num_keys).masked_fill_((distance < -back) | (distance > ahead), float("-inf"))


def _attend_with_prefixes(
    layout: FlatLayout, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """Causal attention where several items go on after one prefix.

    All tokens after a prefix attend to it in one call without a mask, each item to itself in another; the two are
    merged by their log-sum-exp (as flash decoding merges its splits), which gives the softmax over both together.
    """
    num_heads, num_tokens = query.shape[1], query.shape[2]
    output = query.new_empty(1, num_tokens, num_heads, value.shape[3])
    weight = torch.empty(1, num_heads, num_tokens, dtype=torch.float32)
    for start, end in layout.segments:
        part, part_weight = _flash(query[:, :, start:end], key[:, :, start:end], value[:, :, start:end], True, scale)
        output[:, start:end] = part.transpose(1, 2)
        weight[:, :, start:end] = part_weight
    for shared in layout.shared:
        (start, end), (first, last) = shared.queries, shared.keys
        part, part_weight = _flash(query[:, :, start:end], key[:, :, first:last], value[:, :, first:last], False, scale)
        share = torch.sigmoid(part_weight - weight[:, :, start:end]).transpose(1, 2).unsqueeze(-1)
        output[:, start:end].lerp_(part.transpose(1, 2), share.to(output.dtype))
    return output


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    causal: bool,
    scale: float | None,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's CPU kernel itself: shape (1, heads, queries, head_dim), and the log-sum-exp, (1, heads, queries)."""
    output, log_sum_exp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=mask, scale=scale
    )
    return output, log_sum_exp
