"""Attention of all items in one kernel call on a CUDA device. Experimental: not yet measured on a GPU.

torch's own variable-length kernel where it takes windows (torch 2.11), else flash-attn where it is installed. Each is
tried once in every form that a model asks for; where it fails, or gives something else than the loop over items, the
loop serves. Neither takes fp32; then, and where prefixes are shared, it is the loop, too.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import torch

from rm_server.backends.device_memory import is_out_of_memory
from rm_server.backends.json_file import first_line
from rm_server.backends.torch import attention_loop
from rm_server.backends.torch.layout import FlatLayout, lay_out

Kernel: TypeAlias = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, bool, tuple[int, int], float | None], torch.Tensor
]
"""Of query, key and value (total_tokens, heads, head_dim), bounds (num_items + 1,), the longest item's length, causal,
(back, ahead) and scale; gives (total_tokens, heads, head_dim)."""

_MAX_HEAD_DIM = 256
_PROBE_LENGTHS = (1, 7, 33, 70)
_PROBE_WINDOWS = (None, 8)
_TOLERANCE = 0.03  # bf16 has 8 bits, and what is compared is about 1

logger = logging.getLogger(__name__)


def find_kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: FlatLayout) -> Kernel | None:
    """The kernel that takes this forward; None: none does."""
    if (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[3] == value.shape[3] <= _MAX_HEAD_DIM  # DeepSeek's values are smaller than its keys
        and not layout.shared
    ):
        return kernel_for(query.device, query.dtype, query.shape[1], key.shape[1], query.shape[3])
    return None


def attend(
    kernel: Kernel,
    layout: FlatLayout,
    memo: dict[Any, Any],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    causal: bool,
    window: int | None,
    scale: float | None,
) -> torch.Tensor:
    """As `attention_loop.attend`, by this kernel."""
    if "bounds" not in memo:
        bounds = torch.tensor([0, *(end for _, end in layout.segments)], dtype=torch.int32)
        memo["bounds"] = bounds.pin_memory().to(query.device, non_blocking=True) if query.is_cuda else bounds
        memo["longest"] = max(end - start for start, end in layout.segments)
    reach = -1 if window is None else window - 1
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    output = kernel(q, k, v, memo["bounds"], memo["longest"], causal, (reach, 0 if causal else reach), scale)
    return output.unsqueeze(0)


@cache
def kernel_for(
    device: torch.device, dtype: torch.dtype, num_heads: int, num_key_heads: int, head_dim: int
) -> Kernel | None:
    """The first kernel that agrees with the loop on this device in this form; None: none does.

    Raises what torch raises for want of memory.
    """
    for name, kernel in kernels():
        try:
            if agrees(kernel, device, dtype, num_heads, num_key_heads, head_dim):
                return kernel
            problem = "gives something else than attention item by item"
        except Exception as error:  # whatever it is, the loop does it as well
            if is_out_of_memory(error):
                raise  # It says nothing about the kernel, which is tried again the next time: no answer was cached.
            problem = f"failed: {first_line(error)}"
        logger.warning(
            "%s is not used for %s with %d and %d heads of %d: it %s",
            name, dtype, num_heads, num_key_heads, head_dim, problem,
        )  # fmt: skip
    return None


@torch.inference_mode()
def agrees(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, num_heads: int, num_key_heads: int, head_dim: int
) -> bool:
    """Whether a kernel gives what the loop gives in fp32, for random items: causal or not, with a window or without."""
    lengths = np.array(_PROBE_LENGTHS, np.int32)
    num_tokens = int(lengths.sum())
    layout = lay_out(np.zeros(num_tokens, np.int32), lengths)
    random = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, num_tokens, heads, head_dim, generator=random).to(device, dtype).transpose(1, 2)
        for heads in (num_heads, num_key_heads, num_key_heads)
    )
    for causal in (True, False):
        for window in _PROBE_WINDOWS:
            came = attend(kernel, layout, {}, query, key, value, causal, window, None)
            wanted = attention_loop.attend(layout, {}, query.float(), key.float(), value.float(), causal, window, None)
            if came.shape != wanted.shape or not bool((came.float() - wanted).abs().max() <= _TOLERANCE):
                return False
    return True


def kernels() -> Iterator[tuple[str, Kernel]]:
    """The kernels that are installed, the preferred one first, each with its name."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        pass
    else:
        parameters = inspect.signature(varlen_attn).parameters
        if "window_size" in parameters:
            yield "torch's varlen_attn", _by_torch(varlen_attn, asks_for_groups="enable_gqa" in parameters)
    try:
        from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]
    except ImportError:
        return
    yield "flash-attn", _by_flash_attn(flash_attn_varlen_func)


def _by_torch(varlen_attn: Callable[..., Any], asks_for_groups: bool) -> Kernel:
    """``asks_for_groups``: heads that share keys have to be told of (torch 2.13); before, the kernel sees them."""

    def kernel(q, k, v, bounds, longest, causal, reach, scale):  # type: ignore[no-untyped-def]
        groups = {"enable_gqa": True} if asks_for_groups and q.shape[1] != k.shape[1] else {}
        return varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scale, window_size=reach, **groups)

    return kernel


def _by_flash_attn(flash_attn_varlen_func: Callable[..., Any]) -> Kernel:
    def kernel(q, k, v, bounds, longest, causal, reach, scale):  # type: ignore[no-untyped-def]
        return flash_attn_varlen_func(
            q, k, v, bounds, bounds, longest, longest, softmax_scale=scale, causal=causal, window_size=reach
        )

    return kernel
