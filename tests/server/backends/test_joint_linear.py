"""Layers that are given the same tensor are one product, give what they gave apart, and keep nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from weakref import ref

import pytest
import tiny_models
import torch

from rm_server.backends.interface import ComputeSettings
from rm_server.backends.loading import load_backend
from rm_server.backends.torch import joint_linear
from rm_server.backends.torch.backend import TorchBackend
from rm_server.backends.torch.joint_linear import JointLinear, JointProduct, join
from rm_server.backends.torch.linear import PrepackedLinear, prepack, swapped_layers, unpack
from rm_server.registry.manifest import Manifest

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")


class Layer(torch.nn.Module):
    """Three that share an input, two that do, and some that look as if they did."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = {"q": 16, "k": 8, "v": 8, "out": 24, "gate": 40, "up": 40, "down": 24, "twice": 8, "once": 8, "bare": 8}
        for name, size in sizes.items():
            inputs = {"out": 16, "down": 40}.get(name, 24)
            setattr(self, name, torch.nn.Linear(inputs, size, bias=name != "bare"))
        self.to(dtype).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Not its own tensor: what is given must be seen to be the same, not look the same.
        x = x + 1
        attended = self.out(torch.tanh(self.q(x)) + torch.cat([self.k(x), self.v(x)], dim=-1))
        down = self.down(torch.tanh(self.gate(attended)) * self.up(attended))
        other = self.twice(down) + self.once(down) + self.twice(x)
        return torch.cat([down, other, self.bare(down)], dim=-1)


JOINED = {"q", "k", "v", "gate", "up"}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 6e-2)])
def test_the_scores_stay_and_the_products_become_fewer(dtype: torch.dtype, tolerance: float) -> None:
    expected, layer = Layer(dtype), Layer(dtype)
    swapped = prepack(layer)
    num_bytes = sum(part.num_bytes for part in swapped_layers(swapped))
    join(swapped, lambda: layer(torch.randn(1, 7, 24).to(dtype)))
    assert {name for name, part in layer.named_children() if isinstance(part, JointLinear)} == JOINED
    assert len(swapped_layers(swapped)) == len(list(layer.children())) - 3
    assert sum(part.num_bytes for part in swapped_layers(swapped)) == num_bytes
    for rows in (1, 5, 300):
        x = torch.randn(1, rows, 24).to(dtype)
        torch.testing.assert_close(layer(x), expected(x), atol=tolerance, rtol=tolerance)
    assert layer.q.product._last is None  # type: ignore[union-attr]
    assert layer.gate.product._last is None  # type: ignore[union-attr]
    unpack(swapped)
    assert all(type(part) is torch.nn.Linear for part in layer.children())
    assert all(torch.equal(weight, expected.get_parameter(name)) for name, weight in layer.named_parameters())


def joined() -> Layer:
    layer = Layer()
    join(prepack(layer), lambda: layer(torch.randn(1, 7, 24)))
    return layer


def test_whoever_asks_for_one_alone_gets_it() -> None:
    layer, expected = joined(), Layer()
    x, y = torch.randn(1, 5, 24), torch.randn(1, 5, 24)
    for name, asked in (("q", x), ("q", y), ("v", x), ("k", y), ("k", x), ("v", x)):
        torch.testing.assert_close(getattr(layer, name)(asked), getattr(expected, name)(asked), atol=1e-5, rtol=1e-5)


def test_a_layer_s_part_may_be_written_to() -> None:
    layer, expected = joined(), Layer()
    x = torch.randn(1, 5, 24)
    layer.q(x).add_(100.0)
    torch.testing.assert_close(layer.k(x), expected.k(x), atol=1e-5, rtol=1e-5)


def test_threads_do_not_meet() -> None:
    layer = joined()
    inputs = [torch.randn(1, 1 + number % 50, 24) for number in range(400)]
    alone = [layer(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(layer, inputs))
    for expected, came in zip(alone, together, strict=True):
        torch.testing.assert_close(came, expected, atol=1e-6, rtol=0)


def test_a_group_s_layers_are_gone_before_the_next_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer()
    swapped = prepack(layer)
    first = [ref(getattr(layer, name)) for name in "qkv"]
    num_left = []

    def counted(weight: torch.Tensor, bias: torch.Tensor | None) -> JointProduct:
        num_left.append(sum(one() is not None for one in first))
        return JointProduct(weight, bias)

    monkeypatch.setattr(joint_linear, "JointProduct", counted)
    join(swapped, lambda: layer(torch.randn(1, 7, 24)))
    assert num_left == [3, 0]


def test_a_product_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(weight: torch.Tensor, bias: torch.Tensor | None) -> PrepackedLinear:
        return PrepackedLinear(weight * 1.001, bias)

    monkeypatch.setattr(joint_linear, "PrepackedLinear", wrong)
    assert not any(isinstance(part, JointLinear) for part in joined().children())


@pytest.mark.parametrize(("family", "groups"), [("bert", {3}), ("llama", {2, 3}), ("gpt2", set())])
def test_models_are_joined_as_they_load(tmp_path: Path, family: str, groups: set[int]) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, family)
    backend = load_backend(folder, Manifest(kind="sequence_classification", max_tokens=120), ComputeSettings())
    assert isinstance(backend, TorchBackend)
    parts = [part for part in backend.forward.backbone.modules() if isinstance(part, JointLinear)]
    products = [part.product for part in parts]
    assert {products.count(product) for product in products} == groups
