"""BERT's tokenising of plain ASCII text by words: each is looked up, and is new to the tokenizer the first time only.

A WordPiece tokenizer treats each word by itself, so a text's ids are its words' ids in a row. The tokenizer's own way
looks at each character for control characters, Chinese ones and accents, keeps where each token came from, and takes
four to six times as long.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from tokenizers import Tokenizer

from rm_server.backends.items import Int32Array

Text: TypeAlias = str | tuple[str, str]
"""A text, or the two of a pair."""

Frame: TypeAlias = Sequence[tuple[bytes | int, int]]
"""What ids are made of: a special token's, or those of the text at this place (0 or 1); each with its type id."""

# Space, what can be printed, and the white space that BERT takes for spaces.
_PLAIN = re.compile(r"[\t\n\r -~]*")
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
_TRIALS: Sequence[Text] = (
    "Plain TEXT, isn't it?",
    " two\tlines\r\nof\n\n42 words__and [marks] <s>... ",
    "~!@#$%^&*()_+`{}|\\\"';:/?.>,<",
    "",
    ("A question?", "an ANSWER."),
    ("", "no question"),
)

MAX_WORDS = 200_000
"""So many words are remembered, some 30 MB; then it begins anew."""
MAX_WORD_CHARACTERS = 100
"""Longer ones are not remembered."""
MAX_CHARACTERS = 100_000
"""The tokenizer lets go of the GIL while it works, and this does not: longer texts are not worth holding up others."""


class PlainText:
    """What it gives is what ``tokenizer`` gives. Used by several threads at once."""

    def __init__(self, tokenizer: Tokenizer, added: tuple[str, ...], lowers: bool) -> None:
        self._tokenizer = tokenizer
        self._added = added
        self._lowers = lowers
        self._frames = {
            (is_pair, adds): _frame(tokenizer, is_pair, adds) for is_pair in (False, True) for adds in (False, True)
        }
        # Never emptied, since other threads may be reading it: another one takes its place.
        self._known: dict[str, bytes] = {}

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> PlainText | None:
        """None where the tokenizer is of another kind than BERT's, or was seen to give other ids."""
        state = json.loads(tokenizer.to_str())
        kinds = [(state.get(part) or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")]
        added = state.get("added_tokens") or []
        # A token that is looked for in what was normalised could be in a text without being in it as it came.
        if kinds != ["BertNormalizer", "BertPreTokenizer", "WordPiece"] or any(token["normalized"] for token in added):
            return None
        plain = cls(tokenizer, tuple(token["content"] for token in added), bool(state["normalizer"]["lowercase"]))
        return plain if all(plain._agrees(text, adds) for text in _TRIALS for adds in (False, True)) else None

    def encode(self, text: Text, *, add_special_tokens: bool) -> tuple[Int32Array, Int32Array | None] | None:
        """Ids and type ids, shape (num_tokens,) each, which are not to be written to; no type ids where all are 0.

        None where the text is not plain, or names one of the added tokens: the tokenizer itself has to look at it.
        """
        texts = (text,) if isinstance(text, str) else text
        found = [self._ids_of(text) for text in texts]
        frame = self._frames[len(texts) > 1, add_special_tokens]
        parts: list[bytes] = []
        for piece, _ in frame:
            ids = piece if isinstance(piece, bytes) else found[piece]
            if ids is None:
                return None
            parts.append(ids)
        types = [type_id for _, type_id in frame]
        return (
            np.frombuffer(b"".join(parts), np.int32),
            np.repeat(np.array(types, np.int32), [len(part) // 4 for part in parts]) if any(types) else None,
        )

    def _ids_of(self, text: str) -> bytes | None:
        """Of the text's words, as an array's bytes; None where it is not plain."""
        if len(text) > MAX_CHARACTERS or not text.isascii() or _PLAIN.fullmatch(text) is None:
            return None
        normalized = text.lower() if self._lowers else text
        if any(token in text or token in normalized for token in self._added):
            return None
        words = _PUNCTUATION.sub(r" \1 ", normalized).split()
        known = self._known
        try:
            return b"".join(map(known.__getitem__, words))
        except KeyError:
            missing = set(words).difference(known)
        if any(len(word) > MAX_WORD_CHARACTERS for word in missing):
            return None
        if len(known) + len(missing) > MAX_WORDS:
            known, missing = {}, set(words)
            self._known = known
        known.update(self._learnt(missing))
        return b"".join(map(known.__getitem__, words))

    def _learnt(self, words: Iterable[str]) -> Iterable[tuple[str, bytes]]:
        words = list(words)
        encodings = self._tokenizer.encode_batch_fast(words, add_special_tokens=False)
        return zip(words, (np.array(encoding.ids, np.int32).tobytes() for encoding in encodings), strict=True)

    def _agrees(self, text: Text, add_special_tokens: bool) -> bool:
        (expected,) = self._tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)
        found = self.encode(text, add_special_tokens=add_special_tokens)
        if found is None:
            return True
        ids, type_ids = found
        return ids.tolist() == expected.ids and (
            expected.type_ids == ([0] * len(ids) if type_ids is None else type_ids.tolist())
        )


def _frame(tokenizer: Tokenizer, is_pair: bool, adds: bool) -> Frame:
    """What the tokenizer puts around a text, or around a pair, as seen with one."""
    (seen,) = tokenizer.encode_batch([("a", "a") if is_pair else "a"], add_special_tokens=adds)
    frame: list[tuple[bytes | int, int]] = []
    for token, type_id, place in zip(seen.ids, seen.type_ids, seen.sequence_ids, strict=True):
        if place is None:
            frame.append((np.int32(token).tobytes(), type_id))
        elif frame[-1:] != [(place, type_id)]:
            frame.append((place, type_id))
    return frame
