"""Rules over whole words: the ones that should occur, and the ones that should not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from rm_server.backends.rules.settings import flag

_WORD = re.compile(r"\w+(?:['’]\w+)*")


def words_of(text: str) -> list[str]:
    """The words of a text: runs of letters, digits and underscores, with apostrophes inside."""
    return _WORD.findall(text)


@dataclass(frozen=True)
class WantedWords:
    """The share, 0 to 1, of ``words`` that occur as whole words; with ``count``, how many of the text's words do."""

    words: Sequence[str] = ()
    ignore_case: bool = True
    count: bool = False
    looks_at: ClassVar[Literal["text"]] = "text"
    _wanted: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        flag(self.count, "count")
        object.__setattr__(self, "_wanted", _word_set(self.words, self.ignore_case))

    def value(self, text: str) -> float:
        words = _words(text, self.ignore_case)
        if self.count:
            return float(sum(word in self._wanted for word in words))
        return len(self._wanted.intersection(words)) / len(self._wanted)


@dataclass(frozen=True)
class ForbiddenWords:
    """How many of the text's words are among ``words`` (give the rule a negative weight).

    With ``count`` false: 1 where any of them occurs, else 0.
    """

    words: Sequence[str] = ()
    ignore_case: bool = True
    count: bool = True
    looks_at: ClassVar[Literal["text"]] = "text"
    _forbidden: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        flag(self.count, "count")
        object.__setattr__(self, "_forbidden", _word_set(self.words, self.ignore_case))

    def value(self, text: str) -> float:
        words = _words(text, self.ignore_case)
        if self.count:
            return float(sum(word in self._forbidden for word in words))
        return float(not self._forbidden.isdisjoint(words))


def _words(text: str, ignore_case: bool) -> list[str]:
    """Found first and folded then: folded, some letters (İ) are two characters, and the second one of no word."""
    words = words_of(text)
    return [word.casefold() for word in words] if ignore_case else words


def _word_set(words: Any, ignore_case: bool) -> frozenset[str]:
    flag(ignore_case, "ignore_case")
    if not isinstance(words, list | tuple) or not words or not all(isinstance(word, str) for word in words):
        raise ValueError("words must be a list of at least one word")
    for word in words:
        if words_of(word) != [word]:
            raise ValueError(f"{word!r} is not one word; for phrases there is the kind regex")
    return frozenset(word.casefold() if ignore_case else word for word in words)
