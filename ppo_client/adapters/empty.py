"""Completions without text (EOS came first), which versions have no score for: their user says what they are worth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from ppo_client.client.content import is_empty
from ppo_client.client.errors import EmptyItem, InvalidSettings, ItemsFailed
from ppo_client.client.scores import Content, Scores

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """What the service is asked for: all rows, or those with text where ``empty_score`` is set."""

    rows: Sequence[int]
    num_rows: int
    prompts: Sequence[Content]
    completions: Sequence[Content]
    empty_score: float | None

    @classmethod
    def of(cls, prompts: Sequence[Content], completions: Sequence[Content], empty_score: float | None) -> Asked:
        if not math.isfinite(empty_score or 0):
            raise InvalidSettings(f"empty_score must be a finite number, got {empty_score}")
        if empty_score is None or not any(map(is_empty, completions)):
            return cls(range(len(completions)), len(completions), prompts, completions, empty_score)
        rows = [row for row, completion in enumerate(completions) if not is_empty(completion)]
        return cls(
            rows, len(completions), [prompts[row] for row in rows], [completions[row] for row in rows], empty_score
        )

    @contextmanager
    def failing_by_row(self) -> Iterator[None]:
        """A failure counts all rows, also those that were not sent; that of an empty completion says which setting goes
        on with it.
        """
        try:
            yield
        except ItemsFailed as failed:
            empty = [place for place, error in failed.errors.items() if isinstance(error, EmptyItem)]
            if any(is_empty(self.completions[place]) for place in empty):
                failed.message += (
                    " Set empty_score to what a completion without text is worth, or have a token sampled."
                )
            if len(self.rows) < self.num_rows:
                failed.errors, failed.scores = self._by_row(failed.errors), self._by_row(failed.scores)
                failed.truncated = self._by_row(failed.truncated)
                first = ", ".join(map(str, [*failed.errors][:3]))
                failed.message += f" Counted with those without text, which were not sent: {first}."
            raise

    def _by_row(self, by_place: Mapping[int, T]) -> dict[int, T]:
        return {self.rows[place]: value for place, value in by_place.items()}

    def rewards(self, scores: Scores) -> list[float]:
        """One for each row."""
        found = dict(zip(self.rows, scores.values, strict=True))
        if self.empty_score is None:
            return list(found.values())
        return [found.get(row, float(self.empty_score)) for row in range(self.num_rows)]

    def truncated(self, scores: Scores) -> list[bool]:
        """One for each row."""
        found = dict(zip(self.rows, scores.truncated, strict=True))
        return [found.get(row, False) for row in range(self.num_rows)]
