"""Backbones of BERT's kind give what transformers' own give, without its calls, and are given back as they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from rm_server.backends.items import Batch, EncodedItem
from rm_server.backends.torch.forward import OneByOneForward, PackedForward
from rm_server.backends.torch.linear import prepack
from rm_server.backends.torch.linear_calls import seen_in
from rm_server.backends.torch.short_encoder import shorten

CPU = torch.device("cpu")
KINDS = {"bert": "bert", "electra": "electra", "roberta": "roberta", "camembert": "roberta", "xlm-roberta": "roberta"}


def make_model(model_type: str) -> Any:
    return tiny_models.make_model(KINDS[model_type], model_type=model_type)


def make_batch(*lengths: int) -> Batch:
    random = np.random.default_rng(0)
    ids = [random.integers(5, tiny_models.VOCAB_SIZE, length).astype(np.int32) for length in lengths]
    return Batch.of([EncodedItem(ids=each, num_tokens=len(each)) for each in ids])


def model_layers(backbone: Any) -> list[Any]:
    return list(backbone.encoder.layer)


@pytest.mark.parametrize("lengths", [(17,), (1,), (40, 3, 64)])
@pytest.mark.parametrize("reads_only", [True, False])
@pytest.mark.parametrize("model_type", KINDS)
def test_they_give_what_transformers_own_give(model_type: str, reads_only: bool, lengths: tuple[int, ...]) -> None:
    model, batch = make_model(model_type), make_batch(*lengths)
    expected = OneByOneForward(model, CPU).logits(batch)
    forward = PackedForward(model, CPU, reads_only=reads_only)
    for layer in model_layers(forward.backbone):
        layer.intermediate.forward = broken  # what a layer's own forward would call
    torch.testing.assert_close(forward.logits(batch), expected, atol=1e-5, rtol=0)


def broken(*_: Any) -> None:
    raise AssertionError("the layer's own forward was used")


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")
@pytest.mark.parametrize(
    ("activation", "forms"), [("gelu", {"forward", "gelu", "plus"}), ("relu", {"forward", "plus"})]
)
def test_what_follows_a_prepacked_product_is_computed_with_it(activation: str, forms: set[str]) -> None:
    model, batch = tiny_models.make_model("bert", hidden_act=activation), make_batch(17, 40)
    expected = OneByOneForward(model, CPU).logits(batch)
    forward = PackedForward(model, CPU)
    swapped = prepack(forward.backbone)
    asked = seen_in(lambda: torch.testing.assert_close(forward.logits(batch), expected, atol=1e-5, rtol=0), swapped)
    assert {one.form for one in asked} == forms


def test_a_model_that_is_given_back_computes_as_before() -> None:
    model, batch = make_model("bert"), make_batch(17, 5)
    expected = OneByOneForward(model, CPU).logits(batch)
    PackedForward(model, CPU).undo()
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(OneByOneForward(model, CPU).logits(batch), expected)


def test_others_and_decoders_stay_as_they_are() -> None:
    assert not shorten(tiny_models.make_model("distilbert").base_model, None)
    assert not shorten(tiny_models.make_model("bert", is_decoder=True).base_model, None)
