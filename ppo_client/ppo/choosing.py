"""Best-of-n and rejection sampling: which completions are kept, by their scores. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from statistics import fmean
from typing import Any

Row = Mapping[str, Any]


def best_of_each(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """The row with the highest score for each prompt; of equal ones the first. Rows of a prompt follow each other.

    Adds `best_of`, how many there were to choose from, and `score_mean`, the mean of their scores.
    """
    for _, group in groupby(rows, key=lambda row: row["prompt_row"]):
        candidates = list(group)
        best = max(candidates, key=lambda row: row["score"])
        mean = fmean(row["score"] for row in candidates)
        yield {**best, "best_of": len(candidates), "score_mean": mean}


def above(rows: Iterable[Row], threshold: float) -> Iterator[Row]:
    """The rows with a higher score than `threshold`."""
    return (row for row in rows if row["score"] > threshold)
