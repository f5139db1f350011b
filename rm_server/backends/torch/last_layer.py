"""The last layer where it is read: of each item one token, and of the others no more than their keys and values.

A head reads the hidden state of one token an item, and everything in a layer but its attention looks at each token by
itself. So the last layer makes two passes: one over all tokens, which ends as its attention is asked, with keys and
values at hand; and one over the tokens that are read, whose queries see those. Of MiniLM's six layers that saves an
eighth, and of a decoder's 28 a thirtieth. Whether an architecture bears it, the self-check finds out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import ref

import torch

from rm_server.backends.checkpoint import Config
from rm_server.backends.torch.attention import Attending, KeysFound, NotPackable, Reading, attending_now
from rm_server.backends.torch.owned_rows import shared_out


def read_only(layer: torch.nn.Module) -> None:
    """From now on the layer computes what `attending` says is read; all where nothing is said."""
    # A reference that does not count: a model goes with its last one, and nobody looks for cycles.
    layer.forward = partial(_forward, ref(layer))


def read_all(layer: torch.nn.Module) -> None:
    """Gives the layer its own forward back."""
    del layer.forward


def find_last_layer(backbone: torch.nn.Module, config: Config) -> torch.nn.Module | None:
    """The last of the layers that follow on each other; None where it cannot be told which that is."""
    num_layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    stacks = [
        module for module in backbone.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == num_layers
    ]
    return stacks[0][-1] if len(stacks) == 1 else None


def _forward(reference: ref[torch.nn.Module], *args: Any, **kwargs: Any) -> Any:
    layer = reference()
    assert layer is not None, "who calls it has it"
    whole = partial(type(layer).forward, layer)
    state = attending_now()
    if state is None or (reading := state.reading) is None:
        return whole(*args, **kwargs)
    kept = _keys(whole, state, args, kwargs)
    args, kwargs = _rows((args, kwargs), state.layout.num_tokens, reading.rows)
    with rows_that_are_read(state, reading, *kept):
        return whole(*args, **kwargs)


@contextmanager
def rows_that_are_read(state: Attending, reading: Reading, key: torch.Tensor, value: torch.Tensor) -> Iterator[None]:
    """Inside, layers are given these rows alone, whose queries see the keys and values of all."""
    state.kept = key, value
    try:
        with shared_out(reading.owners, range(1, reading.num_items + 1), len(reading.rows)):
            yield
    finally:
        state.kept = None


def _keys(
    whole: Callable[..., Any], state: Attending, args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    state.is_for_keys = True
    try:
        whole(*args, **kwargs)
    except KeysFound as found:
        return found.key, found.value
    finally:
        state.is_for_keys = False
    raise NotPackable("the last layer asks for no attention")


def _rows(value: Any, num_tokens: int, rows: torch.Tensor) -> Any:
    """The same of some rows alone: of every tensor of shape (1, num_tokens, …), however deep it lies."""
    if isinstance(value, torch.Tensor):
        return value.index_select(1, rows) if value.shape[:2] == (1, num_tokens) else value
    if isinstance(value, tuple):
        return tuple(_rows(part, num_tokens, rows) for part in value)
    if isinstance(value, dict):
        return {name: _rows(part, num_tokens, rows) for name, part in value.items()}
    return value
