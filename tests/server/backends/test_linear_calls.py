"""What is asked of prepacked layers is seen, and sizes that were prepared give what they give."""

from __future__ import annotations

import pytest
import torch

from rm_server.backends.torch.linear import PrepackedLinear, prepack
from rm_server.backends.torch.linear_calls import make_ready, seen_in

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")


def make_layers() -> tuple[PrepackedLinear, PrepackedLinear, list[tuple[torch.nn.Module, str, torch.nn.Module]]]:
    torch.manual_seed(0)
    pair = torch.nn.ModuleDict({"first": torch.nn.Linear(24, 40), "second": torch.nn.Linear(24, 40, bias=False)})
    swapped = prepack(pair.requires_grad_(False))
    first, second = pair["first"], pair["second"]
    assert isinstance(first, PrepackedLinear)
    assert isinstance(second, PrepackedLinear)
    return first, second, swapped


def test_what_layers_are_asked_is_seen_in_order_and_then_no_more() -> None:
    first, second, swapped = make_layers()
    x, other = torch.randn(1, 3, 24), torch.randn(1, 3, 40)
    asked = seen_in(lambda: (second(x), first.plus(x, other), first.gelu(x)), swapped)
    assert [(one.layer, one.form) for one in asked] == [(second, "forward"), (first, "plus"), (first, "gelu")]
    assert all(one.x is x for one in asked)
    first(x)
    assert len(asked) == 3


def test_a_forward_that_fails_leaves_nothing_behind() -> None:
    first, _, swapped = make_layers()
    with pytest.raises(ZeroDivisionError):
        seen_in(lambda: (first(torch.randn(1, 3, 24)), 1 / 0), swapped)
    assert not {"forward", "gelu", "plus"} & vars(first).keys()


def test_each_shape_is_prepared_in_each_form_once_a_size() -> None:
    first, second, swapped = make_layers()
    x, other = torch.randn(1, 3, 24), torch.randn(1, 3, 40)
    asked = seen_in(lambda: (first(x), second(x), first.plus(x, other), first(x)), swapped)
    again = seen_in(lambda: make_ready(asked, [8, 16]), swapped)
    forms = (first, "forward"), (second, "forward"), (first, "plus")
    # The large ones first: what the small ones take then fits where theirs was.
    assert [(one.layer, one.form, one.x.shape[1]) for one in again] == [(*form, 16) for form in forms] + [
        (*form, 8) for form in forms
    ]
