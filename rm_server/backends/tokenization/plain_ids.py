"""Token ids of a whole call taken at once: the usual case, in which nothing is wrong and nothing is cut."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import chain

import numpy as np

from rm_server.backends.items import Content, EncodedItem


def plain_ids(
    pairs: Sequence[tuple[Content, Content]], vocabulary_size: int, max_tokens: int
) -> list[EncodedItem] | None:
    """One item for each pair of prompt and completion, as ids; one array is made and checked for all of them.

    None where any item needs a closer look: no ids, no completion, an id outside of the vocabulary, or more than
    ``max_tokens`` (0: no limit). Each is encoded by itself then.
    """
    lengths = []
    for prompt, completion in pairs:
        if not completion or not _are_ids(completion) or not (prompt == "" or _are_ids(prompt)):
            return None
        length = len(prompt) + len(completion)
        if max_tokens and length > max_tokens:
            return None
        lengths.append((len(prompt), length))
    flat = list(chain.from_iterable(chain.from_iterable(pairs)))
    try:
        # Twice as fast as numpy's own way from a list, and refuses what is no number or does not fit.
        ids = np.frombuffer(struct.pack(f"{len(flat)}i", *flat), np.int32)
    except struct.error:
        return None
    # As unsigned numbers, negative ones are larger than any vocabulary.
    if len(ids) and ids.view(np.uint32).max() >= vocabulary_size:
        return None
    items, start = [], 0
    for num_prompt, length in lengths:
        items.append(EncodedItem(ids[start : start + length], length, completion_start=num_prompt))
        start += length
    return items


def _are_ids(content: Content) -> bool:
    return type(content) is tuple and (not content or type(content[0]) is int)
