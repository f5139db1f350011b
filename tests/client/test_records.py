from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from ppo_client.client.errors import InvalidFile
from ppo_client.client.records import read_rows, write_rows, write_with_fields

ROWS: list[dict[str, Any]] = [{"prompt": "a\nß", "n": 1}, {"prompt": [{"role": "user", "content": "x"}], "late": 0.5}]
FLAT: list[dict[str, Any]] = [{"prompt": "a\nß", "n": 1}, {"prompt": "b", "n": 2, "late": 0.5}]


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.json", "x.2024.jsonl.gz"])
def test_json_rows_come_back_as_they_went(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / name, ROWS)
    assert list(read_rows(tmp_path / name)) == ROWS
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_parquet_rows_come_back_with_nothing_where_a_column_was_missing(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    write_rows(tmp_path / "x.parquet", FLAT)
    assert list(read_rows(tmp_path / "x.parquet")) == [FLAT[0] | {"late": None}, FLAT[1]]
    write_rows(tmp_path / "empty.parquet", [])
    assert list(read_rows(tmp_path / "empty.parquet")) == []


def test_columns_may_begin_after_many_rows(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    rows = [{"n": number} for number in range(10_500)] + [{"n": 1, "error": "why"}]
    write_rows(tmp_path / "x.parquet", rows)
    back = list(read_rows(tmp_path / "x.parquet"))
    assert back[0] == {"n": 0, "error": None}
    assert back[-1] == {"n": 1, "error": "why"}


def test_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl.gz", ROWS)
    write_rows(tmp_path / "b.jsonl.gz", ROWS)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    assert list(read_rows(tmp_path / "x.jsonl")) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a"', "line 2 is no JSON"),
        ("x.jsonl", b"[1]\n", "line 1 is list"),
        ("x.jsonl", b"\xff\xfe\n", "line 1 is no JSON"),
        ("x.jsonl.gz", b"plain", "cannot be read"),
        ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-20], "cannot be read"),
        ("x.parquet", b"plain", "cannot be read"),
        ("x.csv", b"a,b", "must end with"),
        ("x.gz", b"", "must end with"),
    ],
)
def test_files_that_are_not_what_they_should_be(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidFile, match=says):
        list(read_rows(tmp_path / name))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match="cannot be read"):
        list(read_rows(tmp_path / "x.jsonl"))


def test_half_a_surrogate_pair_stays_what_it_is(tmp_path: Path) -> None:
    write_rows(tmp_path / "x.jsonl", [{"a": "\ud83e"}, {"a": "ß"}])
    assert list(read_rows(tmp_path / "x.jsonl")) == [{"a": "\ud83e"}, {"a": "ß"}]


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
