"""What the settings of a rule may be: each check returns the value, or raises ValueError saying what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def whole_number(value: Any, name: str) -> int:
    """A whole number; true and false are none."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} must be a whole number of at most 64 bits, not {value!r}")
    return value


def finite_number(value: Any, name: str) -> float:
    """A number that is neither infinite nor NaN."""
    if not is_finite_number(value):
        raise ValueError(f"{name} must be a finite number, not {value!r}")
    return float(value)


def is_finite_number(value: Any) -> bool:
    """Whether it is a number, no true or false, that a float can hold: JSON's whole numbers may be longer."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


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
