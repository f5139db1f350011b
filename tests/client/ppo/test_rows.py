"""Rows of files: which are chosen, and what a message says of those that are not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ppo_client.ppo.errors import DataError
from ppo_client.ppo.rows import read_rows

ROWS: list[dict[str, Any]] = [
    {"text": "a", "split": "Train", "held": True, "fold": 1},
    {"text": "b", "split": "test", "held": False, "fold": 2},
    {"text": "c", "split": "true", "held": None, "fold": 2.5},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("where", "lines"),
    [
        ("", [1, 3, 5]),
        ("split=test", [3]),
        ("fold=2", [3]),
        ("fold=2.5", [5]),
        ("held=true", [1]),
        ("held=True", [1]),
        ("held=false", [3]),
        ("split=true", [5]),
    ],
)
def test_rows_are_chosen_and_keep_their_places(tmp_path: Path, where: str, lines: list[int]) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    assert [place for place, _ in read_rows(path, where)] == [f"{path}, line {line}" for line in lines]


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("split=train", "no rows with split=train: split is 'Train', 'test', 'true'"),
        ("splt=test", "none has a field 'splt'; there are text, split, held, fold"),
        ("held=1", "held is 'true', 'false', 'None'"),
        ("split=True", "split is 'Train', 'test', 'true'"),
    ],
)
def test_what_no_row_has_is_told_with_what_they_have(tmp_path: Path, where: str, says: str) -> None:
    with pytest.raises(DataError, match=f"{says}$"):
        list(read_rows(write(tmp_path / "a.jsonl", ROWS), where))


def test_of_many_values_a_few_are_told(tmp_path: Path) -> None:
    many = write(tmp_path / "a.jsonl", [{"id": f"{number}" + "x" * 90} for number in range(9)])
    with pytest.raises(DataError) as caught:
        list(read_rows(many, "id=9"))
    assert str(caught.value).endswith(f"'3{'x' * 38}, '4{'x' * 38}, …")
    with pytest.raises(DataError, match="the file has none at all"):
        list(read_rows(write(tmp_path / "b.jsonl", []), "id=9"))
