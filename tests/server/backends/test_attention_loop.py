"""Attention per item against one plain softmax over everything with a mask, written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from rm_server.backends.torch import attention_loop
from rm_server.backends.torch.attention_loop import attend
from rm_server.backends.torch.layout import FlatLayout, SharedPrefix, lay_out


def by_one_mask(
    layout: FlatLayout, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool, window: int | None
) -> torch.Tensor:
    """The definition: softmax over all tokens, with every one masked that the layout does not let be seen."""
    num_tokens = query.shape[2]
    visible = torch.zeros(num_tokens, num_tokens, dtype=torch.bool)
    for start, end in layout.segments:
        visible[start:end, start:end] = True
    position = torch.arange(num_tokens)
    distance = position[None, :] - position[:, None]
    if causal:
        visible &= distance <= 0
    if window is not None:
        visible &= distance.abs() < window
    for shared in layout.shared:
        visible[slice(*shared.queries), slice(*shared.keys)] = True
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    weights = (query @ key.transpose(2, 3)) * 0.3
    return (weights.masked_fill(~visible, float("-inf")).softmax(-1) @ value).transpose(1, 2)


def states(num_tokens: int, num_heads: int = 4, num_key_heads: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(1, num_tokens, heads, 8, generator=generator, dtype=torch.float32).transpose(1, 2)
        for heads in (num_heads, num_key_heads, num_key_heads)
    )


@pytest.mark.parametrize("window", [None, 1, 5, 40, 1000])
@pytest.mark.parametrize("causal", [True, False])
def test_each_item_sees_itself_alone(causal: bool, window: int | None) -> None:
    lengths = np.array([1, 16, 3, 150, 31, 257, 500, 15], np.int32)
    layout = lay_out(np.zeros(lengths.sum(), np.int32), lengths)
    query, key, value = states(int(lengths.sum()))
    expected = by_one_mask(layout, query, key, value, causal, window)
    came = attend(layout, {}, query, key, value, causal, window, 0.3)
    torch.testing.assert_close(came, expected, atol=2e-6, rtol=0)


class OnGpu(torch.Tensor):
    """Says that it is on a GPU, and is on the CPU."""

    is_cuda = True


@pytest.mark.parametrize(
    ("dtype", "window"), [(torch.float32, None), (torch.float32, 5), (torch.bfloat16, 5), (torch.bfloat16, None)]
)
def test_on_a_gpu_heads_that_do_not_share_keys_have_copies_of_them(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, window: int | None
) -> None:
    asked: list[tuple[int, bool]] = []

    def noted(query: torch.Tensor, key: torch.Tensor, *rest: Any, enable_gqa: bool, **how: Any) -> torch.Tensor:
        asked.append((key.shape[1], enable_gqa))
        return scaled_dot_product_attention(query, key, *rest, enable_gqa=enable_gqa, **how)

    monkeypatch.setattr(attention_loop, "scaled_dot_product_attention", noted)
    lengths = np.array([30, 17], np.int32)
    layout = lay_out(np.zeros(47, np.int32), lengths)
    query, key, value = (tensor.to(dtype) for tensor in states(47))
    value = value[..., :6]  # of another size than keys: then it is torch that chooses the kernel, as on a GPU
    expected = by_one_mask(layout, query.float(), key.float(), value.float(), True, window)
    came = attend(layout, {}, *(tensor.as_subclass(OnGpu) for tensor in (query, key, value)), True, window, 0.3)
    assert set(asked) == {(4, False)}
    tolerance = 2e-6 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(came.as_subclass(torch.Tensor).float(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "value_dim", "is_masked", "is_shared"),
    [
        (torch.bfloat16, 256, 256, False, True),
        (torch.float16, 8, 8, False, True),
        (torch.float32, 8, 8, False, False),
        (torch.bfloat16, 8, 8, True, False),
        (torch.bfloat16, 24, 16, False, False),
        (torch.bfloat16, 264, 264, False, False),
    ],
)
def test_on_a_gpu_heads_share_keys_only_where_flash_serves(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, head_dim: int, value_dim: int, is_masked: bool, is_shared: bool
) -> None:
    asked: list[tuple[int, int, bool]] = []

    def noted(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, enable_gqa: bool, **_: Any) -> None:
        asked.append((key.shape[1], value.shape[1], enable_gqa))

    monkeypatch.setattr(attention_loop, "scaled_dot_product_attention", noted)
    query, key, value = (
        torch.zeros(1, heads, 12, size, dtype=dtype).as_subclass(OnGpu)
        for heads, size in ((4, head_dim), (2, head_dim), (2, value_dim))
    )
    attention_loop._fused(query, key, value, attn_mask=torch.zeros(12, 12) if is_masked else None, scale=None)
    assert asked == [(2, 2, True) if is_shared else (4, 4, False)]


@pytest.mark.parametrize("value_dim", [8, 6], ids=["by log-sum-exp", "by its keys beside"])
def test_what_follows_a_prefix_sees_it(value_dim: int) -> None:
    lengths = np.array([9, 40, 33, 64, 7, 20, 30], np.int32)
    prefixes = [SharedPrefix(1, 3, 29), SharedPrefix(5, 2, 18)]
    layout = lay_out(np.zeros(lengths.sum(), np.int32), lengths, None, prefixes)
    query, key, value = states(layout.num_tokens)
    value = value[..., :value_dim]  # of another size than keys: as on a GPU
    expected = by_one_mask(layout, query, key, value, True, None)
    came = attend(layout, {}, query, key, value, True, None, 0.3)
    torch.testing.assert_close(came, expected, atol=2e-6, rtol=0)


def test_a_neighbour_s_keys_have_no_weight_at_all() -> None:
    lengths = np.array([5, 20], np.int32)
    layout = lay_out(np.zeros(25, np.int32), lengths)
    query, key, value = states(25)
    before = attend(layout, {}, query, key, value, False, None, 0.3)[:, :5]
    key[:, :, 5:], value[:, :, 5:] = 1e4, 1e30
    assert torch.equal(attend(layout, {}, query, key, value, False, None, 0.3)[:, :5], before)


def test_the_layers_of_a_forward_share_their_masks() -> None:
    lengths = np.array([300, 10], np.int32)
    layout = lay_out(np.zeros(310, np.int32), lengths)
    query, key, value = states(310)
    memo: dict[object, torch.Tensor] = {}
    first = attend(layout, memo, query, key, value, True, 30, 0.3)
    masks = dict(memo)
    assert masks
    assert torch.equal(attend(layout, memo, query, key, value, True, 30, 0.3), first)
    assert all(memo[name] is mask for name, mask in masks.items())
