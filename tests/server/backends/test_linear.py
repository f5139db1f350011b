"""Prepacked layers give torch's products, and a layer whose probe fails stays as it is."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from rm_server.backends.torch import linear
from rm_server.backends.torch.linear import PrepackedLinear, prepack, unpack

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")


def make_layers() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn.ModuleDict(
        {
            "plain": torch.nn.Linear(24, 40),
            "no_bias": torch.nn.Linear(24, 40, bias=False),
            "gpt2": Conv1D(40, 24),
            "inner": torch.nn.Sequential(torch.nn.Linear(24, 40)),
            "norm": torch.nn.LayerNorm(24),
        }
    )
    torch.nn.init.normal_(layers["gpt2"].bias)  # type: ignore[arg-type]
    return layers.requires_grad_(False)


@needs_onednn
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_products_are_torch_s(dtype: torch.dtype, tolerance: float) -> None:
    layers, packed = make_layers().to(dtype), make_layers().to(dtype)
    assert len(prepack(packed)) == 4
    for name in ("plain", "no_bias", "gpt2", "inner"):
        for rows in (1, 5, 300):
            x = torch.randn(1, rows, 24).to(dtype)
            expected = layers[name](x)
            came = packed[name](x)
            assert came.shape == expected.shape
            torch.testing.assert_close(came, expected, atol=tolerance, rtol=tolerance)


@needs_onednn
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_gelu_and_sum_are_torch_s(dtype: torch.dtype, tolerance: float) -> None:
    layers, packed = make_layers().to(dtype), make_layers().to(dtype)
    prepack(packed)
    for name in ("plain", "no_bias", "gpt2"):
        part = packed[name]
        assert isinstance(part, PrepackedLinear)
        for rows in (1, 5, 300):
            x, other = torch.randn(1, rows, 24).to(dtype), torch.randn(1, rows, 40).to(dtype)
            product = layers[name](x)
            torch.testing.assert_close(part.gelu(x), torch.nn.functional.gelu(product), atol=tolerance, rtol=tolerance)
            torch.testing.assert_close(part.plus(x, other), product + other, atol=tolerance, rtol=tolerance)


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_can_be_put_back(dtype: torch.dtype) -> None:
    before, layers = make_layers().to(dtype), make_layers().to(dtype)
    swapped = prepack(layers)
    assert isinstance(layers["plain"], PrepackedLinear)
    unpack(swapped)
    assert {name: type(module) for name, module in layers.named_modules()} == {
        name: type(module) for name, module in before.named_modules()
    }
    for name, weight in before.named_parameters():
        assert torch.equal(layers.get_parameter(name), weight), name


@needs_onednn
def test_a_weight_is_in_memory_once() -> None:
    layers = make_layers()
    originals = [weakref.ref(weight) for weight in layers.parameters() if weight.ndim == 2]
    assert len(swapped := prepack(layers)) == len(originals)
    assert [original() for original in originals] == [None] * len(swapped)


@needs_onednn
def test_a_layer_in_two_places_is_packed_once() -> None:
    layer = torch.nn.Linear(24, 40).requires_grad_(False)
    expected = layer(x := torch.randn(1, 5, 24))
    places = torch.nn.ModuleList([torch.nn.Sequential(layer), torch.nn.Sequential(layer)])
    swapped = prepack(places)
    assert places[0][0] is places[1][0]  # type: ignore[index]
    torch.testing.assert_close(places[1](x), expected, atol=1e-5, rtol=1e-5)
    unpack(swapped)
    assert places[0][0] is places[1][0] is layer  # type: ignore[index]
    assert torch.equal(layer(x), expected)


def test_half_precision_and_subclasses_stay() -> None:
    class Doubled(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    assert prepack(torch.nn.Sequential(torch.nn.Linear(8, 8).to(torch.float16))) == []
    assert prepack(torch.nn.Sequential(Doubled(8, 8))) == []


@pytest.mark.parametrize("form", ["forward", "gelu", "plus"])
def test_a_product_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    right = getattr(PrepackedLinear, form)
    monkeypatch.setattr(PrepackedLinear, form, lambda *x: right(*x) * 1.001)
    assert prepack(make_layers()) == []


def test_an_operator_that_is_not_there_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setattr(linear.PrepackedLinear, "__init__", missing)
    assert prepack(make_layers()) == []
