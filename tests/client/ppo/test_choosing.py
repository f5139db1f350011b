"""What is kept of scored completions."""

from __future__ import annotations

from typing import Any

from ppo_client.ppo.choosing import above, best_of_each


def rows(*scores: tuple[int, float]) -> list[dict[str, Any]]:
    return [{"prompt_row": prompt, "score": score, "place": place} for place, (prompt, score) in enumerate(scores)]


def test_the_best_of_each_prompt_and_of_equals_the_first() -> None:
    found = list(best_of_each(rows((0, 1.0), (0, 3.0), (0, 3.0), (1, -2.0), (2, 0.5), (2, 0.0))))
    assert [(row["prompt_row"], row["place"], row["best_of"]) for row in found] == [(0, 1, 3), (1, 3, 1), (2, 4, 2)]
    assert found[0]["score_mean"] == 7 / 3


def test_only_above() -> None:
    assert [row["place"] for row in above(rows((0, 1.0), (0, 1.5), (1, 2.0)), 1.0)] == [1, 2]
