from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from ppo_client.client.data_files import rows_of
from ppo_client.client.errors import InvalidFile
from ppo_client.client.row_writer import checked_rows, write_rows, write_with_fields

ROWS: list[dict[str, Any]] = [{"prompt": "a\nß", "n": 1}, {"prompt": [{"role": "user", "content": "x"}], "late": 0.5}]
FLAT: list[dict[str, Any]] = [{"prompt": "a\nß", "n": 1}, {"prompt": "b", "n": 2, "late": 0.5}]


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in rows_of(path)]


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.json", "x.2024.jsonl.gz"])
def test_json_rows_come_back_as_they_went(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / name, ROWS)
    assert read_rows(tmp_path / name) == ROWS
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_parquet_rows_come_back_with_nothing_where_a_column_was_missing(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    write_rows(tmp_path / "x.parquet", FLAT)
    assert read_rows(tmp_path / "x.parquet") == [FLAT[0] | {"late": None}, FLAT[1]]
    write_rows(tmp_path / "empty.parquet", [])
    assert read_rows(tmp_path / "empty.parquet") == []


def test_columns_may_begin_after_many_rows(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    rows = [{"n": number} for number in range(10_500)] + [{"n": 1, "error": "why"}]
    write_rows(tmp_path / "x.parquet", rows)
    back = read_rows(tmp_path / "x.parquet")
    assert back[0] == {"n": 0, "error": None}
    assert back[-1] == {"n": 1, "error": "why"}


def test_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl.gz", ROWS)
    write_rows(tmp_path / "b.jsonl.gz", ROWS)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


@pytest.mark.parametrize("name", ["x.csv", "x.gz", "x"])
def test_a_name_that_does_not_say_what_to_write(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidFile, match=r"the name must end with \.jsonl, \.jsonl\.gz or \.parquet"):
        write_rows(tmp_path / name, ROWS)


def test_half_a_surrogate_pair_stays_what_it_is(tmp_path: Path) -> None:
    write_rows(tmp_path / "x.jsonl", [{"a": "\ud83e"}, {"a": "ß"}])
    assert read_rows(tmp_path / "x.jsonl") == [{"a": "\ud83e"}, {"a": "ß"}]


def test_dates_of_a_table_are_text_in_json(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("day,at,n\n2024-02-29,2024-02-29 13:00:00,1\n")
    [(_, row)] = checked_rows(tmp_path / "in.csv", tmp_path / "out.jsonl")
    assert row["day"] == date(2024, 2, 29)
    write_with_fields(tmp_path / "out.jsonl", tmp_path / "in.csv", {"score": float}, [{"score": 0.5}])
    assert read_rows(tmp_path / "out.jsonl") == [
        {"day": "2024-02-29", "at": "2024-02-29T13:00:00", "n": 1, "score": 0.5}
    ]


def test_what_json_cannot_say_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match="row 2 cannot be written as JSON"):
        write_rows(tmp_path / "x.jsonl", [{"a": 1}, {"a": b"raw"}])
    assert list(tmp_path.iterdir()) == []


def test_columns_of_a_parquet_file_stay_as_they_are(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table(
        {
            "pairs": arrow.array([[("k", 1)], []], arrow.map_(arrow.string(), arrow.int32())),
            "kind": arrow.array(["x", "y"]).dictionary_encode(),
            "small": arrow.array([0.1, None], arrow.float32()),
            "none": arrow.array([[], []], arrow.list_(arrow.int16())),
            "time": arrow.array([1, 2], arrow.timestamp("ns", "UTC")),
        }
    )
    parquet.write_table(table, tmp_path / "in.parquet")
    fields = {"score": float, "why": str}
    write_with_fields(
        tmp_path / "out.parquet", tmp_path / "in.parquet", fields, iter([{"score": 0.5}, {"why": "too long"}])
    )
    found = parquet.read_table(tmp_path / "out.parquet")
    assert found.select(table.column_names).equals(table)
    assert found.select(["score", "why"]).to_pylist() == [
        {"score": 0.5, "why": None},
        {"score": None, "why": "too long"},
    ]
    parquet.write_table(table.slice(0, 0), tmp_path / "empty.parquet")
    write_with_fields(tmp_path / "scored.parquet", tmp_path / "empty.parquet", fields, iter([]))
    assert parquet.read_table(tmp_path / "scored.parquet").column_names == [*table.column_names, *fields]
