"""What callers may send as text and as token ids, whatever the kind of version."""

from __future__ import annotations

import numpy as np

from rm_server.backends.items import Int32Array
from rm_server.backends.json_file import first_line
from rm_server.errors import InvalidTokenIds, UnsupportedContent


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
