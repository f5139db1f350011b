"""Attention of all items in one kernel call on a CUDA device. Experimental: not yet measured on a GPU.

torch's own variable-length kernel where it takes windows (torch 2.13), else flash-attn where it is installed. Neither
takes fp32; then, and where prefixes are shared, the loop over items serves.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from rm_server.backends.layout import FlatLayout

_MAX_HEAD_DIM = 256


def can_attend(query: torch.Tensor, layout: FlatLayout) -> bool:
    """Whether one of the kernels takes this forward."""
    return (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[3] <= _MAX_HEAD_DIM
        and not layout.shared
        and _kernel() is not None
    )


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
    """As `attention_loop.attend`."""
    kernel = _kernel()
    assert kernel is not None, "can_attend was not asked"
    if "bounds" not in memo:
        bounds = torch.tensor([0, *(end for _, end in layout.segments)], dtype=torch.int32)
        memo["bounds"] = bounds.pin_memory().to(query.device, non_blocking=True)
    longest = max(end - start for start, end in layout.segments)
    reach = -1 if window is None else window - 1
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    output = kernel(q, k, v, memo["bounds"], longest, causal, (reach, 0 if causal else reach), scale)
    return output.unsqueeze(0)


# query, key, value (total_tokens, heads, head_dim), bounds (num_items + 1,), longest item, causal, (back, ahead), scale
_Kernel = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, bool, tuple[int, int], float | None], torch.Tensor
]


@cache
def _kernel() -> _Kernel | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return _flash_attn_kernel()
    if "window_size" not in inspect.signature(varlen_attn).parameters:
        return _flash_attn_kernel()

    def by_torch(q, k, v, bounds, longest, causal, reach, scale):  # type: ignore[no-untyped-def]
        return varlen_attn(
            q, k, v, bounds, bounds, longest, longest,
            scale=scale, window_size=reach, enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip

    return by_torch


def _flash_attn_kernel() -> _Kernel | None:
    try:
        from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]
    except ImportError:
        return None

    def by_flash_attn(q, k, v, bounds, longest, causal, reach, scale):  # type: ignore[no-untyped-def]
        return flash_attn_varlen_func(
            q, k, v, bounds, bounds, longest, longest, softmax_scale=scale, causal=causal, window_size=reach
        )

    return by_flash_attn
