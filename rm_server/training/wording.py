"""How counts read in texts and pages."""

from __future__ import annotations


def count(num: int, noun: str) -> str:
    """``1 pair``, ``2 pairs``."""
    return f"{num} {noun}" + "s" * (num != 1)
