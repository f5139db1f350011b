"""Which neighbours of a batch share a prefix that is worth computing once. Pure."""

from __future__ import annotations

import numpy as np

from rm_server.backends.items import Int32Array
from rm_server.backends.torch.layout import SharedPrefix

# A group with a shared prefix costs one more attention call and a merge over its rests in every layer: that is repaid
# by no fewer tokens than these, and by no smaller share of the group's tokens.
MIN_SAVED_TOKENS = 32
MIN_SAVED_SHARE = 0.12
# A common BOS or two words are no shared prompt.
MIN_PREFIX_TOKENS = 4
# Where a whole batch begins alike (a system prompt, say) a group could begin anywhere; larger ones save little more.
MAX_GROUP_ITEMS = 64


def find_shared_prefixes(
    ids: Int32Array, lengths: Int32Array, max_tokens: int | None = None, owners: Int32Array | None = None
) -> list[SharedPrefix]:
    """The groups of adjacent items that together save the most tokens when their common beginning is computed once.

    ``ids`` has shape (sum of lengths,). ``max_tokens``: longer items take no part. A prefix is shorter than each of its
    items, so that every item keeps a token of its own. Items of different ``owners``, shape (num_items,), share
    nothing. Dynamic programming over where the last group begins: a step
    looks back only as far as items go on sharing, so a batch of strangers costs one comparison an item, and over no
    more than ``MAX_GROUP_ITEMS``.
    """
    common = _common_with_previous(ids, lengths, max_tokens, owners)
    best = [0] * (len(lengths) + 1)  # tokens saved among the first i items
    last_group: list[SharedPrefix | None] = [None] * (len(lengths) + 1)
    for end in range(1, len(lengths) + 1):
        best[end] = best[end - 1]
        length, total = int(np.iinfo(np.int32).max), int(lengths[end - 1])
        for first in range(end - 2, max(end - MAX_GROUP_ITEMS, 0) - 1, -1):
            length = min(length, common[first + 1])
            if length < MIN_PREFIX_TOKENS:
                break
            total += int(lengths[first])
            saved = (end - first - 1) * length
            pays = saved >= MIN_SAVED_TOKENS and saved >= MIN_SAVED_SHARE * total
            if pays and best[first] + saved > best[end]:
                best[end] = best[first] + saved
                last_group[end] = SharedPrefix(first, end - first, length)
    groups: list[SharedPrefix] = []
    end = len(lengths)
    while end > 0:
        group = last_group[end] if best[end] != best[end - 1] else None
        if group is not None:
            groups.append(group)
        end = group.first if group is not None else end - 1
    return groups[::-1]


def tokens_to_compute(
    ids: Int32Array, lengths: Int32Array, max_tokens: int | None = None, owners: Int32Array | None = None
) -> list[int]:
    """For each item, how many of its tokens are computed where the one before it is computed along with it.

    Arguments as `find_shared_prefixes`, which looks at whole groups: this is what it comes to for the usual ones, of
    completions to one prompt.
    """
    sizes = lengths.tolist()
    return [
        size - shared if shared >= max(MIN_PREFIX_TOKENS, MIN_SAVED_SHARE * (before + size)) else size
        for shared, before, size in zip(
            _common_with_previous(ids, lengths, max_tokens, owners), [0, *sizes], sizes, strict=False
        )
    ]


def _common_with_previous(
    ids: Int32Array, lengths: Int32Array, max_tokens: int | None, owners: Int32Array | None
) -> list[int]:
    """For each item, how many tokens it has in common with the one before it; 0 for the first."""
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    sizes = lengths.tolist()
    common = [0] * len(sizes)
    for index in range(1, len(sizes)):
        if max_tokens is not None and max(sizes[index - 1], sizes[index]) > max_tokens:
            continue
        limit = min(sizes[index - 1], sizes[index]) - 1
        before, after = ends[index - 1] - sizes[index - 1], ends[index - 1]
        different = ids[before : before + limit] != ids[after : after + limit]
        common[index] = int(different.argmax()) if different.any() else max(limit, 0)
    for index in () if owners is None else np.flatnonzero(np.diff(owners)).tolist():
        common[index + 1] = 0
    return common
