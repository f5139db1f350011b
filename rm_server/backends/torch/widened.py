"""A model with narrow weights that computes in fp32: each weight is widened where it is used, and let go again.

So what is asked of a model in fp32 (`self_check`) takes the memory of one wide weight at a time, and not of all of
them; of an embedding's, the largest most often, that of the rows alone that are looked up. A weight that was stored
narrow loses nothing by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import embedding
from torch.utils._pytree import tree_map_only

_NARROW = (torch.bfloat16, torch.float16)


class _Table(torch.Tensor):
    """An embedding's narrow weight: rows are looked up before they are widened. To all else it is a wide tensor."""

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if function is embedding and kwargs["max_norm"] is None:  # else the rows are changed where they are
                return embedding(*args, **kwargs).float()
            if function == torch.Tensor.dtype.__get__:  # type: ignore[attr-defined]
                return torch.float32  # Gemma asks before it scales what was looked up.
            args, kwargs = tree_map_only(cls, torch.Tensor.float, (args, dict(kwargs)))
            return function(*args, **kwargs)


class _Parameters(dict[str, Any]):
    """Of one module: wide for whoever asks by name, as modules do that compute; as they are for who lists them."""

    def __getitem__(self, name: str) -> torch.Tensor | None:
        found: torch.Tensor | None = super().__getitem__(name)
        return self._wide(found) if found is not None and found.dtype in _NARROW else found

    def _wide(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.float()


class _EmbeddingParameters(_Parameters):
    def _wide(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.as_subclass(_Table)


def is_narrow(model: torch.nn.Module) -> bool:
    """Whether any weight is narrower than fp32."""
    return any(parameter.dtype in _NARROW for parameter in model.parameters())


def is_widened(module: torch.nn.Module) -> bool:
    """Whether the module computes in fp32 whatever its weights are."""
    return isinstance(module._parameters, _Parameters)


def widen(model: torch.nn.Module) -> list[torch.nn.Module]:
    """From now on the model computes in fp32, whatever way its weights are asked for. Returns its modules."""
    modules = list(model.modules())
    for module in modules:
        kind = _EmbeddingParameters if isinstance(module, torch.nn.Embedding) else _Parameters
        module._parameters = kind(module._parameters)
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
