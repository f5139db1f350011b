"""A model with narrow weights that computes in fp32: each weight is widened where it is used, and let go again.

So what is asked of a model in fp32 (`self_check`) takes the memory of one wide weight at a time, and not of all of
them. A weight that was stored narrow loses nothing by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_NARROW = (torch.bfloat16, torch.float16)


class _Parameters(dict[str, Any]):
    """Of one module: wide for whoever asks by name, as modules do that compute; as they are for who lists them."""

    def __getitem__(self, name: str) -> torch.Tensor | None:
        found: torch.Tensor | None = super().__getitem__(name)
        return found.float() if found is not None and found.dtype in _NARROW else found


def is_narrow(model: torch.nn.Module) -> bool:
    """Whether any weight is narrower than fp32."""
    return any(parameter.dtype in _NARROW for parameter in model.parameters())


def widen(model: torch.nn.Module) -> list[torch.nn.Module]:
    """From now on the model computes in fp32, whatever way its weights are asked for. Returns its modules."""
    modules = list(model.modules())
    for module in modules:
        module._parameters = _Parameters(module._parameters)
    return modules


@contextmanager
def widened(model: torch.nn.Module) -> Iterator[None]:
    """Inside, the model computes in fp32; not for other threads' use."""
    modules = widen(model)  # those that are here now, wherever they may be put meanwhile
    try:
        yield
    finally:
        for module in modules:
            module._parameters = dict(module._parameters)
