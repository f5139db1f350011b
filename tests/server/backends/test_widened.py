"""A narrow model computes in fp32 with weights that stay narrow, and computes as before afterwards."""

from __future__ import annotations

import copy

import pytest
import tiny_models
import torch

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
