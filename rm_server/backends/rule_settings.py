"""What the settings of a rule may be: each check returns the value, or raises ValueError saying what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def whole_number(value: Any, name: str) -> int:
    """A whole number; true and false are none."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    return value


def finite_number(value: Any, name: str) -> float:
    """A number that is neither infinite nor NaN."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {value!r}")
    return float(value)


def flag(value: Any, name: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, not {value!r}")
    return value


def one_of(value: Any, name: str, known: Sequence[str]) -> str:
    """One of the words that are known."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} is {value!r}; known are {', '.join(known)}")
    return value
