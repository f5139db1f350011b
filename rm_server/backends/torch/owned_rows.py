"""Whose rows of the tensors under way are whose, where one forward computes for several: for adapters over one base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeAlias

import torch

from rm_server.backends.items import Int32Array

Part: TypeAlias = tuple[int, slice]
"""An owner, and its rows."""

NOBODY = 0


@dataclass(frozen=True, slots=True)
class OwnedRows:
    """``num_rows``: of every tensor that a layer gets now, rows of nobody included; None: all rows have one owner."""

    parts: tuple[Part, ...]
    num_rows: int | None = None

    def flat(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor as rows, shape (num_rows, features): a view where it can be one.

        Raises ValueError where it has other rows than the parts speak of, as where a layer sees chosen tokens only.
        """
        rows = tensor.reshape(-1, tensor.shape[-1])
        if self.num_rows is not None and len(rows) != self.num_rows:
            raise ValueError(f"a layer sees {len(rows)} rows of the {self.num_rows} under way")
        return rows


_NOBODYS = OwnedRows(((NOBODY, slice(None)),))
_owned: ContextVar[OwnedRows] = ContextVar("owned")


def owned_rows() -> OwnedRows:
    """Of the forward under way in this thread."""
    return _owned.get(_NOBODYS)


@contextmanager
def owned_by(owner: int) -> Iterator[None]:
    """All rows are this owner's, in this thread, while the block runs."""
    token = _owned.set(OwnedRows(((owner, slice(None)),)))
    try:
        yield
    finally:
        _owned.reset(token)


@contextmanager
def shared_out(owners: Int32Array | None, ends: Sequence[int], num_rows: int) -> Iterator[None]:
    """Rows go to the owners of their items while the block runs. ``owners`` None: it stays as it is.

    ``owners`` has shape (num_items,), each owner's items side by side; ``ends``: the row after each item's last.
    """
    if owners is None:
        yield
        return
    parts: list[Part] = []
    for owner, end in zip(owners.tolist(), ends, strict=True):
        start = parts[-1][1].stop if parts else 0
        if parts and parts[-1][0] == owner:
            start = parts.pop()[1].start
        parts.append((owner, slice(start, end)))
    token = _owned.set(OwnedRows(tuple(parts), num_rows))
    try:
        yield
    finally:
        _owned.reset(token)
