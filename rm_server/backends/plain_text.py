"""BERT's normalisation of plain ASCII text: nothing but lower case, which Python gives in no time.

The tokenizer's own looks at each character for control characters, Chinese ones and accents, and keeps where it came
from. That is over two fifths of BERT's tokenising.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tokenizers import Tokenizer

# Space, what can be printed, and the white space that BERT takes for spaces.
_PLAIN = re.compile(r"[\t\n\r -~]*")
_TRIALS = (
    "Plain TEXT, isn't it?",
    " two\tlines\r\nof\n\n42 words__and [marks] <s>... ",
    "~!@#$%^&*()_+`{}|\\\"';:/?.>,<",
    "",
)


class PlainText:
    """``tokenizer``: the given one without its normaliser, for texts that `normalized` gives."""

    def __init__(self, tokenizer: Tokenizer, added: tuple[str, ...], lowers: bool) -> None:
        self.tokenizer = tokenizer
        self._added = added
        self._lowers = lowers

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> PlainText | None:
        """None where the tokenizer normalises in another way than BERT's, or was seen to give other ids."""
        state = json.loads(tokenizer.to_str())
        normalizer, added = state.get("normalizer") or {}, state.get("added_tokens") or []
        # A token that is looked for in what was normalised could be in a text without being in it as it came.
        if normalizer.get("type") != "BertNormalizer" or any(token["normalized"] for token in added):
            return None
        bare = Tokenizer.from_str(json.dumps(state | {"normalizer": None}))
        plain = cls(bare, tuple(token["content"] for token in added), bool(normalizer["lowercase"]))
        for text in _TRIALS:
            found = plain.normalized(text)
            if found is not None and bare.encode(found).ids != tokenizer.encode(text).ids:
                return None
        return plain

    def normalized(self, text: str) -> str | None:
        """The text as the tokenizer would normalise it; None: it is not plain, or names one of the added tokens."""
        if not text.isascii() or _PLAIN.fullmatch(text) is None:
            return None
        normalized = text.lower() if self._lowers else text
        return None if any(token in text or token in normalized for token in self._added) else normalized

    def normalized_all(self, text: Any) -> Any:
        """The same of a text, or of the two of a pair."""
        if isinstance(text, str):
            return self.normalized(text)
        parts = tuple(map(self.normalized, text))
        return None if None in parts else parts
