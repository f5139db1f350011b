"""The kinds of rules: each looks at token ids or at text, and gives a plain number. Pure.

A kind is a dataclass: its fields are the keys that `rules.json` may give, its docstring says what the value means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import numpy as np

from rm_server.backends.items import Int32Array
from rm_server.backends.rules.language import Language
from rm_server.backends.rules.regex import Regex
from rm_server.backends.rules.settings import finite_number, one_of, whole_number
from rm_server.backends.rules.words import ForbiddenWords, WantedWords, words_of

Looks: TypeAlias = Literal["token_ids", "text"]

LONGEST_RUN = 64
"""Units in a row that are compared with others; each costs as much as it is long."""


class RuleKind(Protocol):
    """What the kinds have in common. Constructing one raises ValueError for settings that make no sense.

    ``value`` takes time in proportion to what it is given, whatever that is: nobody's text may stall a worker.
    """

    @property
    def looks_at(self) -> Looks:
        """Whether ``value`` is given token ids or text."""
        ...

    def value(self, content: Any) -> float:
        """The rule's number for a completion or a prompt: ids of shape (num_tokens,) or text, never empty."""
        ...


@dataclass(frozen=True)
class TokenIdShare:
    """The share, 0 to 1, of the ids that are in ``ids``, or that leave ``residue`` modulo ``modulus``."""

    ids: Sequence[int] | None = None
    modulus: int | None = None
    residue: int | None = None
    looks_at: ClassVar[Looks] = "token_ids"

    def __post_init__(self) -> None:
        is_class = self.modulus is not None and self.residue is not None
        if (self.ids is None) != is_class or (self.ids is not None and (self.modulus, self.residue) != (None, None)):
            raise ValueError("give either ids, or modulus and residue")
        if is_class and not 0 <= whole_number(self.residue, "residue") < whole_number(self.modulus, "modulus"):
            raise ValueError("0 <= residue < modulus must hold")
        for index in self.ids or ():
            whole_number(index, "ids")

    def value(self, ids: Int32Array) -> float:
        if self.ids is not None:
            hits = np.isin(ids, np.array(self.ids, np.int64))
        else:
            hits = ids % np.int64(self.modulus or 1) == self.residue
        return int(np.count_nonzero(hits)) / len(ids)


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
        one_of(self.unit, "unit", ("words", "characters", "tokens"))
        upper = math.inf if self.max is None else finite_number(self.max, "max")
        if not 0 <= finite_number(self.min, "min") <= upper:
            raise ValueError("0 <= min <= max must hold")
        if finite_number(self.soft, "soft") < 0:
            raise ValueError("soft must not be negative")

    @property
    def looks_at(self) -> Looks:
        return "token_ids" if self.unit == "tokens" else "text"

    def value(self, content: Int32Array | str) -> float:
        length = len(words_of(content)) if isinstance(content, str) and self.unit == "words" else len(content)
        outside = max(self.min - length, length - (math.inf if self.max is None else self.max), 0.0)
        if outside == 0:
            return 1.0
        return max(0.0, 1.0 - outside / self.soft) if self.soft else 0.0


@dataclass(frozen=True)
class DistinctN:
    """Different runs of ``n`` units over all runs, 0 to 1; 1 means that nothing repeats, or that there is no run.

    ``unit``: words or tokens. ``n`` is at most 64.
    """

    n: int = 2
    unit: str = "words"

    def __post_init__(self) -> None:
        if not 1 <= whole_number(self.n, "n") <= LONGEST_RUN:
            raise ValueError(f"n must be at least 1 and at most {LONGEST_RUN}")
        one_of(self.unit, "unit", ("words", "tokens"))

    @property
    def looks_at(self) -> Looks:
        return "token_ids" if self.unit == "tokens" else "text"

    def value(self, content: Int32Array | str) -> float:
        units = words_of(content) if isinstance(content, str) else content.tolist()
        num_runs = len(units) - self.n + 1
        if num_runs < 1:
            return 1.0
        return len({tuple(units[start : start + self.n]) for start in range(num_runs)}) / num_runs


class Repetition(DistinctN):
    """The share, 0 to 1, of runs of ``n`` units that have occurred before (give the rule a negative weight).

    ``unit``: words or tokens. ``n`` is at most 64. 0 means that nothing repeats, or that there is no run.
    """

    def value(self, content: Int32Array | str) -> float:
        return 1.0 - super().value(content)


RULE_KINDS: Mapping[str, type[RuleKind]] = {
    "token_id_share": TokenIdShare,
    "length": LengthWindow,
    "wanted_words": WantedWords,
    "forbidden_words": ForbiddenWords,
    "regex": Regex,
    "distinct_n": DistinctN,
    "repetition": Repetition,
    "language": Language,
}
