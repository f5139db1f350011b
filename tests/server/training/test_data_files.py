"""Data files: one table in every form is the same rows, and complaints name file and line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from rm_server.errors import InvalidRequest
from rm_server.training.data_files import BadData, read_rows
from rm_server.training.preferences import read_preferences
from rm_server.training.ratings import read_ratings
from rm_server.training.reference_texts import read_texts

ROWS: list[dict[str, Any]] = [
    {"prompt": "Ärger,\nsagt er", "n": 1, "rating": 0.5, "group": "a"},
    {"prompt": 'a "tale"', "n": 2, "rating": 3.0, "group": None},
]
LINES = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n"
ARRAY = "\n" + json.dumps(ROWS, indent=1, ensure_ascii=False)
CSV = 'prompt,n,rating\n"Ärger,\nsagt er",1,0.5\n"a ""tale""",2,3.0\n'

WRITERS: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda path: path.write_text(LINES, encoding="utf-8"),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES.encode())),
    "lines.json": lambda path: path.write_text(LINES, encoding="utf-8"),
    "array.json": lambda path: path.write_text(ARRAY, encoding="utf-8-sig"),
    "array.json.gz": lambda path: path.write_bytes(gzip.compress(ARRAY.encode())),
    "a.csv": lambda path: path.write_text(CSV, encoding="utf-8-sig"),
    "a.csv.gz": lambda path: path.write_bytes(gzip.compress(CSV.encode())),
    "a.parquet": lambda path: parquet.write_table(pyarrow.Table.from_pylist(ROWS), path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_form_is_the_same_rows_with_their_places(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    last = 3 if name in ("a.jsonl", "a.jsonl.gz", "lines.json") else 2  # an empty line is counted, and left out
    kept = ("prompt", "n", "rating") if "csv" in name else ROWS[0].keys()
    rows = [{key: row[key] for key in kept} for row in ROWS]
    assert list(read_rows(path)) == [(f"{path}:1", rows[0]), (f"{path}:{last}", rows[1])]


def test_a_text_in_csv_that_looks_like_a_number_is_text(tmp_path: Path) -> None:
    """Answers to sums are all numbers, and 042 or 1.50 as a number is another answer."""
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\n6*7?,042,41\n3/2?,1.50,2\n", encoding="utf-8")
    found = [(pair.prompt, pair.chosen, pair.rejected) for pair in read_preferences(tmp_path / "a.csv")]
    assert found == [("6*7?", "042", "41"), ("3/2?", "1.50", "2")]
    (tmp_path / "b.csv").write_text("prompt,completion,rating\n6*7?,042,1\n3/2?,1.50,2\n", encoding="utf-8")
    assert [(text.completion, text.rating) for text in read_ratings(tmp_path / "b.csv")] == [("042", 1), ("1.50", 2)]
    assert read_texts(tmp_path / "b.csv") == [("6*7?", "042"), ("3/2?", "1.50")]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", b'{"a": 1}\n{oh\n', "a.jsonl:2 is not JSON"),
        ("a.jsonl", b"[1]\n", "a.jsonl:1 is a JSON list; one object per line"),
        ("a.jsonl", b'{"a": "\xff"}\n', "not UTF-8"),
        ("a.jsonl", gzip.compress(b"{}\n", mtime=0), "name must end in .gz"),
        ("a.jsonl.gz", b"not gzip", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-20], "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0)[:10] + b"\xff" * 20, "cannot be read"),
        ("a.jsonl", b'{"a": 1}\n' + b"[" * 100_000, "a.jsonl:2 is not JSON"),
        ("a.json", b"[" * 100_000, "a.json is not JSON"),
        ("a.json", b'[{"a": 1},', "a.json is not JSON"),
        ("a.json", b'[{"a": 1}, 2]', "a.json:2 is a JSON int; an array of objects is expected"),
        ("a.csv", b"a,b\n1\n", "a.csv cannot be read"),
        ("a.csv", b"a,b,,,a\n1,2,,,3\n", "a.csv has more than one column named a; which is meant"),
        ("a.parquet", b"not parquet", "cannot be read"),
        ("a.parquet.gz", b"", "data files end in"),
        ("a.txt", b"once", r"data files end in \.jsonl, \.json, \.csv, each with \.gz, too, or in \.parquet"),
        ("folder/a.jsonl", b"{}", r"folder is a folder; a file is needed\. From a dataset: .*to_parquet"),
    ],
)
def test_a_broken_file_is_refused_by_name(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(BadData, match=complaint):
        list(read_rows(path.parent if "/" in name else path))


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n')
    assert list(read_rows(path)) == [(f"{path}:1", {"a": 1})]


@pytest.mark.parametrize("name", ["none.jsonl", "none.csv"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadData, match=rf"{name} cannot be read: there is no such file\.$"):
        list(read_rows(tmp_path / name))
    assert issubclass(BadData, InvalidRequest)
