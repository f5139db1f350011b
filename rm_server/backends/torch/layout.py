"""Where items lie in one flat forward: ids, positions, and which tokens attend to which. Arrays only, no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from rm_server.backends.items import Int32Array

Range: TypeAlias = tuple[int, int]
Int64Array: TypeAlias = npt.NDArray[np.int64]
ReadPosition: TypeAlias = Literal["first", "last"]
"""Which of an item's tokens its head reads."""


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """``num_items`` items from ``first`` on begin with the same ``length`` tokens, and each goes on after them."""

    first: int
    num_items: int
    length: int


@dataclass(frozen=True, slots=True)
class SharedAttention:
    """Tokens in ``queries`` attend to all ``keys`` (their prefix), beside what their own segment lets them see."""

    queries: Range
    keys: Range


@dataclass(frozen=True, slots=True)
class FlatLayout:
    """One flat forward over several items.

    ``ids``, ``positions``: shape (total_tokens,); positions begin at 0 for each item. ``type_ids`` likewise or None.
    ``segments``: each attends within itself (causally or not); what lies behind the last one is read by nobody.
    ``shared``: what attends to a prefix besides. ``items``: each item's own tokens, in the order of the batch; with a
    shared prefix, those after it.
    """

    ids: Int32Array
    positions: Int64Array
    type_ids: Int32Array | None
    segments: tuple[Range, ...]
    shared: tuple[SharedAttention, ...]
    items: tuple[Range, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens that are computed."""
        return len(self.ids)

    def read_tokens(self, position: ReadPosition) -> list[int]:
        """Where each item's token is that its head reads."""
        return [start if position == "first" else end - 1 for start, end in self.items]

    def prefixes(self) -> dict[Range, Range]:
        """The prefix of each item that comes after one."""
        found: dict[Range, Range] = {}
        rest = iter(self.shared)
        shared = next(rest, None)
        for item in self.items:
            while shared is not None and item[0] >= shared.queries[1]:
                shared = next(rest, None)
            if shared is not None and item[0] >= shared.queries[0]:
                found[item] = shared.keys
        return found

    def read_keys(self, position: ReadPosition, window: int | None) -> list[tuple[Range, ...]]:
        """What these tokens see: the last one what is before it, its prefix too, the first one what is behind it.

        Of a ``window`` of w tokens, w - 1 beside itself. No item is longer than that where prefixes are shared.
        """
        prefixes = self.prefixes()
        found: list[tuple[Range, ...]] = []
        for start, end in self.items:
            if (start, end) in prefixes:
                found.append((prefixes[start, end], (start, end)))
            elif window is None:
                found.append(((start, end),))
            elif position == "first":
                found.append(((start, min(end, start + window)),))
            else:
                found.append(((max(start, end - window), end),))
        return found


def lay_out(
    ids: Int32Array, lengths: Int32Array, type_ids: Int32Array | None = None, prefixes: Sequence[SharedPrefix] = ()
) -> FlatLayout:
    """Lays items end to end; those of a shared prefix as prefix, rest 1, rest 2, …, positions going on after it.

    ``ids`` and ``type_ids`` have shape (sum of lengths,). ``prefixes``: in order, not overlapping, each shorter than
    any of its items.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    starts = ends - lengths
    if not prefixes:
        places = tuple(zip(starts.tolist(), ends.tolist(), strict=True))
        positions = np.arange(len(ids)) - np.repeat(starts, lengths)
        return FlatLayout(ids, positions, type_ids, segments=places, shared=(), items=places)
    prefix_of = {prefix.first: prefix for prefix in prefixes}
    sources: list[Range] = []  # ranges of `ids`, in the order of the forward
    first_positions: list[int] = []
    segments: list[Range] = []
    items: list[Range] = []
    shared: list[SharedAttention] = []
    at = 0

    def place(start: int, end: int, position: int) -> Range:
        nonlocal at
        sources.append((start, end))
        first_positions.append(position)
        segments.append((at, at + end - start))
        at += end - start
        return segments[-1]

    index = 0
    while index < len(lengths):
        prefix = prefix_of.get(index)
        if prefix is None:
            items.append(place(int(starts[index]), int(ends[index]), 0))
            index += 1
            continue
        keys = place(int(starts[index]), int(starts[index]) + prefix.length, 0)
        for member in range(index, index + prefix.num_items):
            items.append(place(int(starts[member]) + prefix.length, int(ends[member]), prefix.length))
        shared.append(SharedAttention(queries=(keys[1], at), keys=keys))
        index += prefix.num_items

    sizes = np.array([end - start for start, end in sources], np.int64)
    offsets = np.repeat(np.cumsum(sizes) - sizes, sizes)
    within = np.arange(at, dtype=np.int64) - offsets
    order = within + np.repeat(np.array([start for start, _ in sources], np.int64), sizes)
    return FlatLayout(
        ids=ids[order],
        positions=within + np.repeat(np.array(first_positions, np.int64), sizes),
        type_ids=None if type_ids is None else type_ids[order],
        segments=tuple(segments),
        shared=tuple(shared),
        items=tuple(items),
    )


def filled_up(layout: FlatLayout) -> FlatLayout:
    """The layout with tokens that belong to no item and no segment, up to the next of few different sizes.

    oneDNN prepares, and keeps, new code for every new number of rows that a prepacked layer gets: of MiniLM-L6, 2 MiB
    for each and, for one item in bf16, a third more time. They are the last token over again, at position 0: nothing
    that an embedding or a position table lacks.
    """
    missing = filled_size(layout.num_tokens) - layout.num_tokens
    if not missing:
        return layout
    return replace(
        layout,
        ids=_with_last(layout.ids, missing),
        positions=np.concatenate([layout.positions, np.zeros(missing, np.int64)]),
        type_ids=None if layout.type_ids is None else _with_last(layout.type_ids, missing),
    )


def _with_last(values: Int32Array, times: int) -> Int32Array:
    return np.concatenate([values, np.repeat(values[-1:], times)])  # np.pad takes ten times as long


def filled_size(num_tokens: int) -> int:
    """The next multiple of 8, above 256 of 32, above 512 of 64: 96 sizes up to 4096 tokens, and few rows for nothing.

    In the mean one in thirty between 128 and 1024 tokens, and one in a hundred beyond.
    """
    multiple = 8 if num_tokens <= 256 else 32 if num_tokens <= 512 else 64
    return num_tokens + -num_tokens % multiple


def filled_sizes(largest: int) -> list[int]:
    """All sizes up to ``largest`` that a forward is filled up to."""
    return sorted({filled_size(num_tokens) for num_tokens in range(1, largest + 1)})
