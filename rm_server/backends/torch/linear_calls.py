"""What a forward asks of prepacked layers: seen in one, and prepared for sizes to come."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch

from rm_server.backends.torch.linear import PrepackedLinear, Swapped, swapped_layers

Form: TypeAlias = Literal["forward", "gelu", "plus"]
"""The method of a prepacked layer that is asked."""


class Asked(NamedTuple):
    """A prepacked layer was given ``x`` in a forward."""

    layer: PrepackedLinear
    form: Form
    x: torch.Tensor


def seen_in(forward: Callable[[], object], swapped: Swapped) -> list[Asked]:
    """What prepacked layers are asked in a forward, in order."""
    seen: list[Asked] = []
    layers = swapped_layers(swapped)

    def watched(layer: PrepackedLinear, form: Form, x: torch.Tensor, *other: torch.Tensor) -> torch.Tensor:
        seen.append(Asked(layer, form, x))
        y: torch.Tensor = getattr(type(layer), form)(layer, x, *other)
        return y

    # Not by hooks: who calls a layer's forward itself would pass them by.
    for layer in layers:
        for form in get_args(Form):
            setattr(layer, form, partial(watched, layer, form))
    try:
        forward()
    finally:
        for layer in layers:
            for form in get_args(Form):
                delattr(layer, form)
    return seen


@torch.inference_mode()
def make_ready(asked: Iterable[Asked], sizes: Iterable[int]) -> None:
    """Has oneDNN prepare, for products with so many rows, what it otherwise prepares as the first of them is asked for.

    It is kept for layers of the same shape, and for products with the number of threads that this thread has now.
    """
    shapes = {
        (form, layer.in_features, layer.out_features, layer.bias is None): (layer, form) for layer, form, _ in asked
    }
    for size in sorted(sizes, reverse=True):  # what a smaller product takes fits where a larger one's was
        for layer, form in shapes.values():
            others = [torch.zeros(1, size, layer.out_features, dtype=layer.dtype)] if form == "plus" else []
            getattr(layer, form)(torch.zeros(1, size, layer.in_features, dtype=layer.dtype), *others)
