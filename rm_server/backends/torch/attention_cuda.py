"""Attention of all items in one kernel call on a CUDA device. Experimental: not yet measured on a GPU.

torch's own variable-length kernel where it takes windows (torch 2.11), else flash-attn where it is installed. Each is
tried once in every form that a model asks for; where it fails, or gives something else than the loop over items, the
loop serves. Neither takes fp32; then it is the loop, too.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import torch

from rm_server.backends.device_memory import is_out_of_memory
from rm_server.backends.json_file import first_line
from rm_server.backends.torch import attention_loop
from rm_server.backends.torch.copying import to_device
from rm_server.backends.torch.layout import FlatLayout, Range, SharedPrefix, lay_out


@dataclass(frozen=True, slots=True)
class Spans:
    """Tokens side by side that belong together: ``bounds`` (num_spans + 1,) on the device, and the longest's length."""

    bounds: torch.Tensor
    longest: int


Kernel: TypeAlias = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, Spans, Spans, tuple[int, int], float | None],
    tuple[torch.Tensor, torch.Tensor],
]
"""Of query, key and value (total_tokens, heads, head_dim), the spans of queries and of keys, (back, ahead) as far as a
query sees (-1: all; ahead 0: causal), and scale; gives (total_tokens, heads, head_dim) and the log-sum-exp, (heads,
total_tokens). Each span of queries attends to that of keys in its place."""

_PROBE_LENGTHS = (1, 7, 33, 70)
_PROBE_WINDOWS = (None, 8)
_PROBE_SHARING = (9, 6, 33, 41, 70, 55)
_PROBE_PREFIXES = (SharedPrefix(first=0, num_items=2, length=5), SharedPrefix(first=3, num_items=3, length=40))
_TOLERANCE = 0.03  # bf16 has 8 bits, and what is compared is about 1

logger = logging.getLogger(__name__)


def find_kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Kernel | None:
    """The kernel that takes this forward; None: none does."""
    if (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[3] == value.shape[3] <= attention_loop.FLASH_HEAD_DIM
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
    """As `attention_loop.attend`, by this kernel: where prefixes are shared, in two calls, merged by `share_of`.

    Raises ValueError where these cannot be merged.
    """
    device = query.device
    if "spans" not in memo:
        memo["spans"] = _spans(layout.segments, device)
    reach = -1 if window is None else window - 1
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    output, log_sum_exp = kernel(q, k, v, memo["spans"], memo["spans"], (reach, 0 if causal else reach), scale)
    if layout.shared:
        if "prefixes" not in memo:
            ranges = [shared.queries for shared in layout.shared], [shared.keys for shared in layout.shared]
            memo["prefixes"] = [(_rows(each, device), _spans(each, device)) for each in ranges]
        (rows, spans), (key_rows, key_spans) = memo["prefixes"]
        part, part_log_sum_exp = kernel(q[rows], k[key_rows], v[key_rows], spans, key_spans, (-1, -1), scale)
        shapes = [tuple(each.shape) for each in (log_sum_exp, part_log_sum_exp)]
        wanted = [(q.shape[1], num_queries) for num_queries in (len(q), len(rows))]
        if shapes != wanted:
            # A row that is not there would be found out on the device alone, after which it computes nothing more.
            raise ValueError(f"its log-sum-exps have shapes {shapes} in place of {wanted}")
        share = attention_loop.share_of(part_log_sum_exp, log_sum_exp[:, rows]).transpose(0, 1).unsqueeze(-1)
        output.index_copy_(0, rows, output[rows].lerp(part, share.to(part.dtype)))
    return output.unsqueeze(0)


def _spans(ranges: Sequence[Range], device: torch.device) -> Spans:
    """Of the ranges' tokens alone, without what lies between them."""
    lengths = [end - start for start, end in ranges]
    return Spans(to_device(np.cumsum([0, *lengths], dtype=np.int32), device), max(lengths))


def _rows(ranges: Sequence[Range], device: torch.device) -> torch.Tensor:
    return to_device(np.concatenate([np.arange(start, end) for start, end in ranges]), device)


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
    """Whether a kernel gives what the loop gives in fp32, causal or not, with a window or without, and after
    prefixes that they share.
    """
    alone, sharing = (
        lay_out(np.zeros(sum(lengths), np.int32), np.array(lengths, np.int32), prefixes=prefixes)
        for lengths, prefixes in ((_PROBE_LENGTHS, ()), (_PROBE_SHARING, _PROBE_PREFIXES))
    )
    asked = [(alone, causal, window) for causal in (True, False) for window in _PROBE_WINDOWS]
    for layout, causal, window in [*asked, (sharing, True, None)]:
        random = torch.Generator().manual_seed(0)
        query, key, value = (
            torch.randn(1, layout.num_tokens, heads, head_dim, generator=random).to(device, dtype).transpose(1, 2)
            for heads in (num_heads, num_key_heads, num_key_heads)
        )
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
    from torch.nn.attention.varlen import AuxRequest

    def kernel(q, k, v, queries, keys, reach, scale):  # type: ignore[no-untyped-def]
        groups = {"enable_gqa": True} if asks_for_groups and q.shape[1] != k.shape[1] else {}
        how = {"scale": scale, "window_size": reach, "return_aux": AuxRequest(lse=True)} | groups
        return varlen_attn(q, k, v, queries.bounds, keys.bounds, queries.longest, keys.longest, **how)

    return kernel


def _by_flash_attn(flash_attn_varlen_func: Callable[..., Any]) -> Kernel:
    def kernel(q, k, v, queries, keys, reach, scale):  # type: ignore[no-untyped-def]
        how = {"softmax_scale": scale, "causal": reach[1] == 0, "window_size": reach, "return_attn_probs": True}
        bounds = queries.bounds, keys.bounds, queries.longest, keys.longest
        output, log_sum_exp, _ = flash_attn_varlen_func(q, k, v, *bounds, **how)
        return output, log_sum_exp

    return kernel
