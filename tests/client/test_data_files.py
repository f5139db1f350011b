"""One table in every format that is read is the same rows; what is not read is told which are."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from ppo_client.client.data_files import file_digest, rows_of
from ppo_client.client.errors import InvalidFile

ROWS: list[dict[str, Any]] = [
    {"prompt": "Ein Fuchs,\nsagt er", "held": True, "fold": 1, "weight": 0.5},
    {"prompt": 'a "tale"', "held": False, "fold": None, "weight": 2.0},
]
CSV = 'prompt,held,fold,weight\n"Ein Fuchs,\nsagt er",true,1,0.5\n"a ""tale""",false,,2.0\n'
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def save(path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(path)


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda path: path.write_text(LINES),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES.encode())),
    "lines.json": lambda path: path.write_text(LINES),
    "array.json": lambda path: path.write_text("\ufeff" + json.dumps(ROWS, indent=2), encoding="utf-8"),
    "array.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "a.csv": lambda path: path.write_text("\ufeff" + CSV, encoding="utf-8"),
    "a.csv.gz": lambda path: path.write_bytes(gzip.compress(CSV.encode())),
    "a.parquet": lambda path: parquet.write_table(pyarrow.Table.from_pylist(ROWS), path),
    "folder": save,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_is_the_same_rows_and_nothing_is_written_beside(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    found = list(rows_of(tmp_path / name))
    assert [row for _, row in found] == ROWS
    assert [type(value) for value in found[1][1].values()] == [str, bool, type(None), float]
    is_lines = name in ("a.jsonl", "a.jsonl.gz", "lines.json")
    assert found[1][0].startswith(f"{tmp_path / name}, {'line' if is_lines else 'row'} 2")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_text_in_csv_that_looks_like_a_number_is_text(tmp_path: Path) -> None:
    """Answers to sums are all numbers, and 042 or 1.50 as a number is another answer."""
    (tmp_path / "a.csv").write_text("prompt,answer,n\n6*7?,042,1\n3/2?,1.50,2\n", encoding="utf-8")
    rows = [row for _, row in rows_of(tmp_path / "a.csv", ("prompt", "answer"))]
    assert rows == [{"prompt": "6*7?", "answer": "042", "n": 1}, {"prompt": "3/2?", "answer": "1.50", "n": 2}]


def test_blank_lines_are_no_rows_and_have_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n \n')
    places = [(place.rpartition(", ")[2], row["a"]) for place, row in rows_of(tmp_path / "a.jsonl")]
    assert places == [("line 1", 1), ("line 3", 2)]


def test_the_digest_of_a_folder_is_that_of_all_that_is_in_it(tmp_path: Path) -> None:
    for name, files in {"a": "xy", "same": "xy", "fewer": "x", "renamed": "xz", "changed": "xy"}.items():
        (tmp_path / name / "inner").mkdir(parents=True)
        for file in files:
            (tmp_path / name / "inner" / file).write_text("1")
    (tmp_path / "changed" / "inner" / "y").write_text("2")
    a, same, *others = (file_digest(tmp_path / name) for name in ("a", "same", "fewer", "renamed", "changed"))
    assert a == same
    assert len({a, *others}) == 4


def test_of_a_folder_with_splits_one_is_named(tmp_path: Path) -> None:
    one = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / "all")
    with pytest.raises(InvalidFile, match=r"has the splits train, test: name the folder of one, such as .*all/train"):
        list(rows_of(tmp_path / "all"))
    assert len(list(rows_of(tmp_path / "all" / "train"))) == 2


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"once", r"nothing is known of \.txt; read are \.jsonl, \.json"),
        ("prompts", b"once", "nothing is known of names without an ending; read are"),
        ("a.parquet", b"once", r"a\.parquet cannot be read"),
        ("a.parquet.gz", b"once", r"nothing is known of \.gz"),
        ("a.csv", b"a,b\n1\n", r"a\.csv cannot be read"),
        ("a.csv", b"a,b,,,a\n1,2,,,3\n", r"a\.csv has more than one column named a; which is meant"),
        ("a.json", b"[1]", "row 1: an object is expected, this is int"),
        ("a.json", b'[{"a": 1},', r"a\.json: not JSON"),
        ("a.jsonl", b'{"a": 1}\n{"a"', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", b"\xff\xfe\n", r"a\.jsonl, line 1: not JSON in UTF-8"),
        ("a.jsonl", b'{"a": 1}\n' + b"[" * 100_000, "line 2: not JSON"),
        ("a.jsonl.gz", b"plain", r"a\.jsonl\.gz cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-20], r"a\.jsonl\.gz cannot be read"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0)[:10] + b"\xff" * 20, r"a\.jsonl\.gz cannot be read"),
        ("folder/a.jsonl", b"{}", "folder is a folder, and datasets' save_to_disk did not make it; read are"),
    ],
)
def test_what_is_not_read_is_told_what_is(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(InvalidFile, match=says):
        list(rows_of(path.parent if "/" in name else path))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match=r"x\.jsonl cannot be read: there is no such file"):
        list(rows_of(tmp_path / "x.jsonl"))


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_format_whose_package_is_missing_says_which(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS[name](tmp_path / name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidFile, match=r"needs pyarrow: `pip install pyarrow`, or use \.jsonl"):
        list(rows_of(tmp_path / name))
