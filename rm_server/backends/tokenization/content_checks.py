"""What callers may send as text and as token ids, whatever the kind of version."""

from __future__ import annotations

import numpy as np

from rm_server.backends.items import Int32Array
from rm_server.backends.json_file import first_line
from rm_server.errors import InvalidTokenIds, ItemTooLong, UnsupportedContent

MAX_CHARACTERS = 2_000_000
"""Of one item. Tokenising so many takes seconds, and 200 bytes for each, whatever is cut off afterwards."""

MAX_CHARACTERS_PER_TOKEN = 16
"""A version that reads very long items is given more: so many for each of its tokens. Texts have 3 to 5."""


def longest_text(max_tokens: int) -> int:
    """How many characters of an item are looked at, to find out which of them the version reads."""
    return max(MAX_CHARACTERS, MAX_CHARACTERS_PER_TOKEN * max_tokens)


def check_length(num_characters: int, max_tokens: int) -> None:
    """Raises ItemTooLong, also where the item could be truncated."""
    if num_characters > longest_text(max_tokens):
        raise ItemTooLong(
            f"The item has {num_characters} characters; at most {longest_text(max_tokens)} are looked at, whatever is "
            "cut off afterwards. Shorten it."
        )


def check_unicode(text: str) -> None:
    """Raises UnsupportedContent for text that UTF-8 cannot hold (a lone surrogate)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UnsupportedContent(
            f"The text is not valid Unicode: {first_line(error)}. Send text that can be written as UTF-8."
        ) from None


def checked_ids(ids: tuple[int, ...], vocabulary_size: int) -> Int32Array:
    """The ids as an array, shape (num_tokens,). Raises InvalidTokenIds for ids outside of the vocabulary."""
    try:
        array = np.array(ids, np.int64)
    except (OverflowError, TypeError, ValueError) as error:
        raise InvalidTokenIds(
            f"Token ids are whole numbers from 0 to {vocabulary_size - 1}: {first_line(error)}"
        ) from None
    # One pass: as unsigned numbers, negative ones are larger than any vocabulary.
    if len(array) and array.view(np.uint64).max() >= vocabulary_size:
        wrong = np.flatnonzero((array < 0) | (array >= vocabulary_size))
        raise InvalidTokenIds(
            f"Token id {array[wrong[0]]} at position {wrong[0]} is outside of the vocabulary (0 to "
            f"{vocabulary_size - 1}); encode with this version's own tokenizer."
        )
    return array.astype(np.int32)
