"""Kernels for a GPU, as far as they go without one: they take what torch takes, and none is used that is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from rm_server.backends.torch import attention_cuda, attention_loop
from rm_server.backends.torch.attention_cuda import Kernel, Spans, agrees, find_kernel, kernel_for, kernels
from rm_server.backends.torch.layout import FlatLayout, Range, SharedPrefix, lay_out

CPU = torch.device("cpu")
FORM = (CPU, torch.bfloat16, 4, 2, 16)


def layout_of(*lengths: int) -> FlatLayout:
    return lay_out(np.zeros(sum(lengths), np.int32), np.array(lengths, np.int32))


def make_kernel(
    *, causal: bool | None = None, windows: bool = True, one_item: bool = False, merges: bool = True
) -> Kernel:
    """A right one, but for what is said: always (not) causal, without windows, with all tokens as one span, or with
    a log-sum-exp that says nothing."""

    def kernel(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        queries: Spans,
        keys: Spans,
        reach: tuple[int, int],
        scale: float | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        bounds = []
        for spans, states in ((queries, q), (keys, k)):
            assert spans.bounds.dtype == torch.int32
            assert spans.bounds[-1] == len(states)
            assert spans.longest == max(spans.bounds.diff().tolist())
            bounds.append([0, len(states)] if one_item else spans.bounds.tolist())
        back, ahead = reach
        if causal is not None:
            ahead = 0 if causal else -1
        if not windows:
            back, ahead = -1, min(ahead, 0)
        distance = torch.arange(len(q))[:, None] - torch.arange(len(k))
        visible = torch.zeros(len(q), len(k), dtype=torch.bool)
        for (first, last), (start, end) in zip(*(pairwise(each) for each in bounds), strict=True):
            visible[first:last, start:end] = True
            distance[first:last, start:end] += start - first
        visible &= (distance <= (back if back >= 0 else len(q))) & (-distance <= (ahead if ahead >= 0 else len(k)))
        k, v = (states.repeat_interleave(q.shape[1] // k.shape[1], 1).float() for states in (k, v))
        weights = torch.einsum("qhd,khd->hqk", q.float(), k) * (scale or q.shape[2] ** -0.5)
        weights = weights.masked_fill(~visible, float("-inf"))
        output = torch.einsum("hqk,khd->qhd", weights.softmax(-1), v).to(q.dtype)
        return output, weights.logsumexp(-1) if merges else torch.zeros(q.shape[1], len(q))

    return kernel


def broken(*_: Any) -> torch.Tensor:
    raise TypeError("varlen_attn() got an unexpected keyword argument 'scale'")


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    kernel_for.cache_clear()
    yield
    kernel_for.cache_clear()


def test_a_kernel_that_is_right_agrees() -> None:
    assert agrees(make_kernel(), *FORM)


@pytest.mark.parametrize(
    "wrong",
    [
        make_kernel(causal=True),
        make_kernel(causal=False),
        make_kernel(windows=False),
        make_kernel(one_item=True),
        make_kernel(merges=False),
        lambda q, *_: (torch.full_like(q, float("nan")), q[:, :, 0].t()),
        lambda q, *_: (q[:1], q[:1, :, 0].t()),
    ],
    ids=["causal", "not causal", "no windows", "one item", "no log-sum-exp", "not finite", "shape"],
)
def test_a_kernel_that_is_wrong_does_not(wrong: Kernel) -> None:
    assert not agrees(wrong, *FORM)


def test_a_kernel_that_fails_or_is_wrong_leaves_its_place_to_the_next(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = make_kernel()
    found = [("broken", broken), ("wrong", make_kernel(causal=True)), ("right", right)]
    monkeypatch.setattr(attention_cuda, "kernels", lambda: iter(found))
    assert kernel_for(*FORM) is right
    assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] == ["broken", "wrong"]
    assert "unexpected keyword argument" in caplog.text
    found.pop()
    kernel_for.cache_clear()
    assert kernel_for(*FORM) is None


@pytest.mark.parametrize("is_first", [True, False], ids=["of the items", "of the prefixes"])
def test_a_log_sum_exp_of_another_shape_is_not_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_first: bool
) -> None:
    right = make_kernel()

    def by_item(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """As flash-attn before 2.6: shape (num_items, heads, longest)."""
        q, _, _, queries, keys, *_ = arguments
        output, log_sum_exp = right(*arguments)
        padded = torch.zeros(len(queries.bounds) - 1, q.shape[1], queries.longest)
        return output, padded if is_first == (queries is keys) else log_sum_exp

    monkeypatch.setattr(attention_cuda, "kernels", lambda: iter([("a kernel", by_item), ("right", right)]))
    assert kernel_for(*FORM) is right
    assert "failed: its log-sum-exps have shapes" in caplog.text


@pytest.mark.parametrize(
    ("dtype", "head_dim", "value_dim", "is_taken"),
    [
        (torch.bfloat16, 16, 16, True),
        (torch.float16, 256, 256, True),
        (torch.float32, 16, 16, False),
        (torch.bfloat16, 264, 264, False),
        (torch.bfloat16, 24, 16, False),
    ],
)
def test_a_kernel_takes_halves_whose_values_are_as_large_as_their_keys(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, head_dim: int, value_dim: int, is_taken: bool
) -> None:
    right = make_kernel()
    monkeypatch.setattr(attention_cuda, "kernel_for", lambda *form: right)
    with FakeTensorMode():
        query, key, value = (
            torch.empty(1, heads, 12, size, dtype=dtype, device="cuda:0")
            for heads, size in ((4, head_dim), (2, head_dim), (2, value_dim))
        )
        assert find_kernel(query, key, value) is (right if is_taken else None)


class Segments(tuple[Range, ...]):
    """Counts how often they are gone through."""

    num_passes = 0

    def __iter__(self) -> Iterator[Range]:
        self.num_passes += 1
        return super().__iter__()


def test_only_the_first_layer_of_a_forward_goes_through_its_items() -> None:
    layout = layout_of(3, 7, 5)
    segments = Segments(layout.segments)
    layout = replace(layout, segments=segments)
    states = torch.ones(1, 2, 15, 8)
    memo: dict[object, object] = {}
    arguments = (make_kernel(), layout, memo, states, states, states, True, None, None)
    first = attention_cuda.attend(*arguments)
    num_passes = segments.num_passes
    assert torch.equal(attention_cuda.attend(*arguments), first)
    assert segments.num_passes == num_passes


def test_a_kernel_that_lacked_memory_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    right = make_kernel()

    def out_of_memory(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(attention_cuda, "kernels", lambda: iter([("the kernel", out_of_memory)]))
    with pytest.raises(torch.OutOfMemoryError):
        kernel_for(*FORM)
    monkeypatch.setattr(attention_cuda, "kernels", lambda: iter([("the kernel", right)]))
    assert kernel_for(*FORM) is right


@pytest.mark.parametrize("num_key_heads", [4, 2])
def test_what_follows_a_prefix_sees_it(num_key_heads: int) -> None:
    lengths = np.array([9, 40, 33, 64, 7, 20, 30], np.int32)
    prefixes = [SharedPrefix(1, 3, 29), SharedPrefix(5, 2, 18)]
    layout = lay_out(np.zeros(lengths.sum(), np.int32), lengths, None, prefixes)
    generator = torch.Generator().manual_seed(0)
    states = [
        torch.randn(1, layout.num_tokens, heads, 8, generator=generator).transpose(1, 2)
        for heads in (4, num_key_heads, num_key_heads)
    ]
    expected = attention_loop.attend(layout, {}, *states, True, None, 0.3)
    came = attention_cuda.attend(make_kernel(), layout, {}, *states, True, None, 0.3)
    torch.testing.assert_close(came, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("num_key_heads", [4, 2])
@pytest.mark.parametrize("reach", [(-1, 0), (7, 0), (-1, -1), (7, 7)])
def test_torch_takes_what_its_kernel_is_given(num_key_heads: int, reach: tuple[int, int]) -> None:
    """The torch that is installed: its arguments differ between releases. Tensors are of a device, and have no data.

    Without cuDNN's attention, as a server computes (`torch_backend.check_settings`): torch 2.15 asks the device for it.
    """
    installed = dict(kernels())
    assert "torch's varlen_attn" in installed
    for kernel in installed.values():
        with FakeTensorMode(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            query, key, value = (
                torch.empty(num_tokens, heads, 16, dtype=torch.bfloat16, device="cuda:0")
                for num_tokens, heads in ((12, 4), (20, num_key_heads), (20, num_key_heads))
            )
            bounds = torch.empty(3, dtype=torch.int32, device="cuda:0")
            output, log_sum_exp = kernel(query, key, value, Spans(bounds, 7), Spans(bounds, 12), reach, 0.25)
        assert (output.shape, output.dtype) == ((12, 4, 16), torch.bfloat16)
        assert (log_sum_exp.shape, log_sum_exp.dtype) == ((4, 12), torch.float32)
