"""The kinds of rules: each looks at one completion, its token ids or its text, and gives a plain number. Pure.

A kind is a dataclass: its fields are the keys that `rules.json` may give, its docstring says what the value means.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import numpy as np
import re2

from rm_server.backends.items import Int32Array

Looks: TypeAlias = Literal["token_ids", "text"]

_WORD = re.compile(r"\w+(?:['’]\w+)*")


class RuleKind(Protocol):
    """What the kinds have in common. Constructing one raises ValueError for settings that make no sense."""

    @property
    def looks_at(self) -> Looks:
        """Whether ``value`` is given token ids or text."""
        ...

    def value(self, completion: Any) -> float:
        """The rule's number for a completion: ids of shape (num_tokens,) or text, never empty."""
        ...


@dataclass(frozen=True)
class TokenIdShare:
    """The share, 0 to 1, of the completion's ids that are in ``ids``, or that leave ``residue`` modulo ``modulus``."""

    ids: Sequence[int] | None = None
    modulus: int | None = None
    residue: int | None = None
    looks_at: ClassVar[Looks] = "token_ids"

    def __post_init__(self) -> None:
        is_class = self.modulus is not None and self.residue is not None
        if (self.ids is None) != is_class or (self.ids is not None and (self.modulus, self.residue) != (None, None)):
            raise ValueError("give either ids, or modulus and residue")
        if is_class and not 0 <= _whole(self.residue, "residue") < _whole(self.modulus, "modulus"):
            raise ValueError("0 <= residue < modulus must hold")
        for index in self.ids or ():
            _whole(index, "ids")

    def value(self, completion: Int32Array) -> float:
        if self.ids is not None:
            hits = np.isin(completion, np.array(self.ids, np.int64))
        else:
            hits = completion % np.int64(self.modulus or 1) == self.residue
        return int(np.count_nonzero(hits)) / len(completion)


@dataclass(frozen=True)
class LengthWindow:
    """1 for a length from ``min`` to ``max``; outside it falls in a straight line to 0 over ``soft`` units.

    ``unit``: words, characters or tokens. ``max`` None: no upper end. ``soft`` 0: the edges are hard.
    """

    unit: str = "words"
    min: float = 0
    max: float | None = None
    soft: float = 0

    def __post_init__(self) -> None:
        _one_of(self.unit, "unit", ("words", "characters", "tokens"))
        upper = math.inf if self.max is None else _number(self.max, "max")
        if not 0 <= _number(self.min, "min") <= upper:
            raise ValueError("0 <= min <= max must hold")
        if _number(self.soft, "soft") < 0:
            raise ValueError("soft must not be negative")

    @property
    def looks_at(self) -> Looks:
        return "token_ids" if self.unit == "tokens" else "text"

    def value(self, completion: Int32Array | str) -> float:
        length = len(words_of(completion)) if isinstance(completion, str) and self.unit == "words" else len(completion)
        outside = max(self.min - length, length - (math.inf if self.max is None else self.max), 0.0)
        if outside == 0:
            return 1.0
        return max(0.0, 1.0 - outside / self.soft) if self.soft else 0.0


@dataclass(frozen=True)
class WantedWords:
    """The share, 0 to 1, of ``words`` that occur as whole words."""

    words: Sequence[str] = ()
    ignore_case: bool = True
    looks_at: ClassVar[Looks] = "text"
    _wanted: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_wanted", _word_set(self.words, self.ignore_case))

    def value(self, completion: str) -> float:
        present = set(words_of(completion.casefold() if self.ignore_case else completion))
        return len(self._wanted & present) / len(self._wanted)


@dataclass(frozen=True)
class ForbiddenWords:
    """How many of the completion's words are among ``words`` (give the rule a negative weight)."""

    words: Sequence[str] = ()
    ignore_case: bool = True
    looks_at: ClassVar[Looks] = "text"
    _forbidden: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_forbidden", _word_set(self.words, self.ignore_case))

    def value(self, completion: str) -> float:
        words = words_of(completion.casefold() if self.ignore_case else completion)
        return float(sum(word in self._forbidden for word in words))


@dataclass(frozen=True)
class Regex:
    """1 where ``pattern`` (RE2 syntax, whose matching takes linear time) occurs, else 0; with ``count``, how often."""

    pattern: str = ""
    count: bool = False
    looks_at: ClassVar[Looks] = "text"
    _compiled: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str) or not self.pattern:
            raise ValueError("pattern must be a text")
        options = re2.Options()
        options.log_errors = False
        try:
            object.__setattr__(self, "_compiled", re2.compile(self.pattern, options=options))
        except re2.error as error:
            raise ValueError(f"pattern {self.pattern!r} is not RE2: {error.args[0]!s}") from error

    def value(self, completion: str) -> float:
        if self.count:
            return float(sum(1 for _ in self._compiled.finditer(completion)))
        return 1.0 if self._compiled.search(completion) else 0.0


@dataclass(frozen=True)
class DistinctN:
    """Different runs of ``n`` units over all runs, 0 to 1; 1 means that nothing repeats, or that there is no run."""

    n: int = 2
    unit: str = "words"

    def __post_init__(self) -> None:
        if _whole(self.n, "n") < 1:
            raise ValueError("n must be at least 1")
        _one_of(self.unit, "unit", ("words", "tokens"))

    @property
    def looks_at(self) -> Looks:
        return "token_ids" if self.unit == "tokens" else "text"

    def value(self, completion: Int32Array | str) -> float:
        units = words_of(completion) if isinstance(completion, str) else completion.tolist()
        runs = [tuple(units[start : start + self.n]) for start in range(len(units) - self.n + 1)]
        return len(set(runs)) / len(runs) if runs else 1.0


RULE_KINDS: Mapping[str, type[RuleKind]] = {
    "token_id_share": TokenIdShare,
    "length": LengthWindow,
    "wanted_words": WantedWords,
    "forbidden_words": ForbiddenWords,
    "regex": Regex,
    "distinct_n": DistinctN,
}


def words_of(text: str) -> list[str]:
    """The words of a text: runs of letters, digits and underscores, with apostrophes inside."""
    return _WORD.findall(text)


def _word_set(words: Any, ignore_case: bool) -> frozenset[str]:
    if not isinstance(words, list | tuple) or not words or not all(isinstance(word, str) for word in words):
        raise ValueError("words must be a list of at least one word")
    for word in words:
        if words_of(word) != [word]:
            raise ValueError(f"{word!r} is not one word; for phrases there is the kind regex")
    return frozenset(word.casefold() if ignore_case else word for word in words)


def _whole(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    return value


def _number(value: Any, name: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {value!r}")
    return float(value)


def _one_of(value: Any, name: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}; known are {', '.join(known)}")
