"""A narrow model computes in fp32 with weights that stay narrow, and computes as before afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import tiny_models
import torch
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode

from rm_server.backends.torch.widened import is_narrow, widened

IDS = torch.arange(6, 30)[None]


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "deberta_v2"])
def test_it_computes_as_the_wide_one(family: str) -> None:
    model = tiny_models.make_model(family).to(torch.bfloat16).eval()
    wide = copy.deepcopy(model).float()
    assert is_narrow(model)
    assert not is_narrow(wide)
    with torch.inference_mode():
        narrow_logits, expected = model(IDS).logits, wide(IDS).logits
        with widened(model):
            came = model(IDS).logits
            assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
        assert torch.equal(came, expected)
        assert torch.equal(model(IDS).logits, narrow_logits)


def test_who_asks_for_another_s_weight_gets_it_wide() -> None:
    layer = torch.nn.Linear(3, 2).half()

    def ask() -> None:
        with widened(layer):
            assert (layer.weight.dtype, layer.bias.dtype) == (torch.float32, torch.float32)
            raise KeyError

    with pytest.raises(KeyError):
        ask()
    assert layer.weight.dtype == torch.float16


class Seen(TorchDispatchMode):
    """Notes how many numbers the largest tensor in fp32 had that was computed."""

    largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
            self.largest = max(self.largest, result.numel())
        return result


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "gemma", "deberta_v2"])
def test_of_an_embedding_only_what_is_looked_up_is_wide(family: str) -> None:
    model = tiny_models.make_model(family, vocab_size=5000).to(torch.bfloat16).eval()
    wide = copy.deepcopy(model).float()
    with torch.inference_mode(), widened(model), Seen() as seen:
        came = model(IDS).logits
    with torch.inference_mode():
        assert torch.equal(came, wide(IDS).logits)
    assert 0 < seen.largest < 5000 * 32


@pytest.mark.parametrize(
    ("layer", "use"),
    [
        (torch.nn.Embedding(30, 4, padding_idx=7), lambda layer: layer(IDS)),
        (torch.nn.Embedding(30, 4, max_norm=0.5), lambda layer: layer(IDS)),
        (torch.nn.Embedding(30, 4, scale_grad_by_freq=True), lambda layer: layer(IDS)),
        (torch.nn.EmbeddingBag(30, 4), lambda layer: layer(IDS)),
        (torch.nn.Embedding(30, 4), lambda layer: linear(layer(IDS), layer.weight)),  # a head that is tied to it
        (torch.nn.Embedding(30, 4), lambda layer: layer.weight[3:9].T @ layer.weight[IDS[0, :6]]),
        (torch.nn.Embedding(30, 4), lambda layer: torch.cat([layer.weight, layer.weight], dim=1).mean(0)),
        (torch.nn.Embedding(30, 4), lambda layer: layer.weight.new_full(layer.weight.shape[:1], 1.001)),
    ],
    ids=["padding", "norm", "frequencies", "bag", "tied", "rows", "list", "new"],
)
def test_an_embedding_is_wide_whatever_it_is_asked_for(
    layer: torch.nn.Module, use: Callable[[Any], torch.Tensor]
) -> None:
    layer = copy.deepcopy(layer).to(torch.bfloat16).requires_grad_(False)
    before, wide = copy.deepcopy(layer), copy.deepcopy(layer).float()
    with torch.inference_mode(), widened(layer):
        came = use(layer)
    assert (came.dtype, type(came)) == (torch.float32, torch.Tensor)
    assert torch.equal(came, use(wide))
    assert torch.equal(layer.get_parameter("weight"), before.get_parameter("weight"))
