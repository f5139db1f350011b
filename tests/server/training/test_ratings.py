"""Rated texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rm_server.training.data_files import BadData
from rm_server.training.ratings import RatedText, read_ratings


def write(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "ratings.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_ratings_are_read_with_their_group(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "completion": "c", "rating": 3, "group": "g"},
        {"prompt": "p", "completion": "d", "rating": 1.5},
        {"prompt": "p", "completion": "e", "rating": 2},
    ]
    first, second, third = read_ratings(write(tmp_path, *rows))
    assert first == RatedText("p", "c", 3.0, "g")
    assert second.group == third.group != "g"


@pytest.mark.parametrize("rating", [None, "good", True, float("nan"), float("inf")])
def test_a_rating_must_be_a_finite_number(tmp_path: Path, rating: object) -> None:
    with pytest.raises(BadData, match=r"ratings\.jsonl:1: `rating` must be a finite number"):
        read_ratings(write(tmp_path, {"prompt": "p", "completion": "c", "rating": rating}))


def test_a_file_without_ratings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="has no ratings"):
        read_ratings(write(tmp_path))
