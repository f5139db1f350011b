"""The rule that looks for a regular expression, with RE2: linear time, whatever the pattern and the text."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar, Literal

import re2

from rm_server.backends.rules.settings import flag

LONGEST_PATTERN = 2000
"""Characters."""

LARGEST_PROGRAM = 2000
"""Instructions. What a text may cost is its length times this; a class of all letters has some 1200."""

MAX_MEMORY_BYTES = 16 << 20
"""For the compiled pattern and RE2's cache of states."""

MOST_MATCHES = 1000
LONGEST_LINE = 1000
"""One match takes linear time, all matches of a text may not: so they are counted within pieces of bounded length."""

_NOT_REGULAR = {
    "(?=": "look-ahead",
    "(?!": "look-ahead",
    "(?<=": "look-behind",
    "(?<!": "look-behind",
    "(?>": "atomic groups",
    "invalid escape sequence: \\1": "back-references",
}


@dataclass(frozen=True)
class Regex:
    """1 where ``pattern`` (RE2 syntax) occurs, else 0; with ``count``, how often, up to 1000.

    What is counted are matches within a line, of lines cut after every 1000 characters.
    """

    pattern: str = ""
    count: bool = False
    looks_at: ClassVar[Literal["text"]] = "text"
    _compiled: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        flag(self.count, "count")
        if not isinstance(self.pattern, str) or not self.pattern:
            raise ValueError("pattern must be a text")
        object.__setattr__(self, "_compiled", _compiled(self.pattern))

    def value(self, text: str) -> float:
        if not self.count:
            return 1.0 if self._compiled.search(text) else 0.0
        num_matches = 0
        for line in text.splitlines():
            for start in range(0, len(line), LONGEST_LINE):
                piece = line[start : start + LONGEST_LINE]
                num_matches += sum(1 for _ in islice(self._compiled.finditer(piece), MOST_MATCHES - num_matches))
                if num_matches == MOST_MATCHES:
                    return float(MOST_MATCHES)
        return float(num_matches)


def _compiled(pattern: str) -> Any:
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(f"pattern has {len(pattern)} characters; at most {LONGEST_PATTERN} are allowed")
    options = re2.Options()
    options.log_errors = False
    options.max_mem = MAX_MEMORY_BYTES
    options.never_capture = True
    try:
        compiled = re2.compile(pattern, options=options)
    except re2.error as error:
        reason = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error.args[0])
        missing = next((what for sign, what in _NOT_REGULAR.items() if reason.endswith(sign)), None)
        hint = f"; RE2 has no {missing}, which would cost more than linear time" if missing else ""
        raise ValueError(f"pattern {pattern!r} is not RE2: {reason}{hint}") from error
    size = max(compiled.programsize, compiled.reverseprogramsize)
    if size > LARGEST_PROGRAM:
        raise ValueError(
            f"pattern {pattern[:80]!r} becomes {size} instructions; at most {LARGEST_PROGRAM} are allowed. "
            "Repeat less in {m,n}, or use smaller classes of characters"
        )
    return compiled
