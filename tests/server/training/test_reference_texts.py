"""Texts from every usual form of data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rm_server.training.data_files import BadData
from rm_server.training.reference_texts import BUILT_IN_TEXTS, read_texts


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pairs_give_two_texts_each_and_no_text_twice(tmp_path: Path) -> None:
    rows = ({"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "p", "chosen": "c", "rejected": "a"})
    assert read_texts(write(tmp_path / "x.jsonl", *rows)) == [("p", "a"), ("p", "b"), ("p", "c")]


def test_rows_of_single_texts(tmp_path: Path) -> None:
    rows = (
        {"prompt": "p", "completion": "a", "rating": 3},
        {"prompt": "p", "response": "b"},
        {"text": "c"},
        {"prompt": [3, 4], "completion": [5]},
    )
    assert read_texts(write(tmp_path / "x.jsonl", *rows)) == [("p", "a"), ("p", "b"), ("", "c"), ((3, 4), (5,))]


def test_a_row_of_no_known_form_is_named_by_its_place(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", {"text": "a"}, {"prompt": "p", "answer": "b"})
    with pytest.raises(BadData, match=r"x\.jsonl:2 has neither chosen .* it has 'prompt', 'answer'"):
        read_texts(path)


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="has no rows"):
        read_texts(write(tmp_path / "x.jsonl"))


def test_our_own_texts_differ() -> None:
    assert len(set(BUILT_IN_TEXTS)) == len(BUILT_IN_TEXTS) == 16
