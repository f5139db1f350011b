"""Reading data files: every form, and complaints that name file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from rm_server.backends.items import ChatMessage
from rm_server.errors import InvalidRequest
from rm_server.training.rows import BadData, content_of, key_of, length_of, name_of, read_rows

ROWS = [{"prompt": "Ärger?", "n": 1}, {"prompt": "b", "n": 2}]


def test_plain_and_gzipped_lines_give_the_same_rows_with_their_places(tmp_path: Path) -> None:
    text = json.dumps(ROWS[0], ensure_ascii=False) + "\n\n" + json.dumps(ROWS[1]) + "\n"
    plain, packed = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    plain.write_text(text, encoding="utf-8")
    packed.write_bytes(gzip.compress(text.encode()))
    assert list(read_rows(plain)) == [(f"{plain}:1", ROWS[0]), (f"{plain}:3", ROWS[1])]
    assert [row for _, row in read_rows(packed)] == ROWS


def test_parquet_gives_the_same_rows(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert list(read_rows(path)) == [(f"{path}:1", ROWS[0]), (f"{path}:2", ROWS[1])]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", b'{"a": 1}\n{oh\n', "a.jsonl:2 is not JSON"),
        ("a.jsonl", b"[1]\n", "a.jsonl:1 is a JSON list; one object per line"),
        ("a.jsonl", b'{"a": "\xff"}\n', "not UTF-8"),
        ("a.jsonl", gzip.compress(b"{}\n", mtime=0), "name must end in .gz"),
        ("a.jsonl.gz", b"not gzip", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-20], "cannot be read"),
        ("a.parquet", b"not parquet", "cannot be read"),
        ("a.csv", b"a,b\n", "data files end in"),
    ],
)
def test_a_broken_file_is_refused_by_name(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadData, match=complaint):
        list(read_rows(path))


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n')
    assert list(read_rows(path)) == [(f"{path}:1", {"a": 1})]


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="cannot be read"):
        list(read_rows(tmp_path / "none.jsonl"))
    assert issubclass(BadData, InvalidRequest)


def test_contents_are_text_messages_or_ids() -> None:
    row = {"text": "hi", "chat": [{"role": "user", "content": "hi"}], "ids": [1, 2]}
    assert content_of(row, "text", "f:1") == "hi"
    assert content_of(row, "chat", "f:1") == (ChatMessage("user", "hi"),)
    assert content_of(row, "ids", "f:1") == (1, 2)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"other": 1}, "f:1 has no `chosen`; it has 'other'"),
        ({"chosen": None}, "f:1: `chosen` is null"),
        ({"chosen": ""}, "`chosen` is empty"),
        ({"chosen": []}, "`chosen` is empty"),
        ({"chosen": 3}, "must be text"),
        ({"chosen": [1, True]}, "must be text"),
        ({"chosen": [{"role": "user"}]}, "needs `role` and `content`"),
    ],
)
def test_a_content_of_another_form_is_refused(row: dict[str, object], complaint: str) -> None:
    with pytest.raises(BadData, match=complaint):
        content_of(row, "chosen", "f:1")


def test_names_are_text_or_whole_numbers() -> None:
    assert [name_of({"group": value}, "group", "f:1") for value in ("P1", 7, None)] == ["P1", "7", None]
    with pytest.raises(BadData, match="`group` must be text or a whole number"):
        name_of({"group": 1.5}, "group", "f:1")


def test_lengths_count_characters_of_the_words_said() -> None:
    assert length_of("four") == 4
    assert length_of((ChatMessage("assistant", "four"), ChatMessage("user", "six"))) == 7
    assert length_of((5, 6, 7)) == 3


def test_keys_differ_where_contents_do() -> None:
    contents = ["1", (1,), (ChatMessage("user", "1"),), (ChatMessage("system", "1"),), "\ud800"]
    assert len({key_of(content) for content in contents}) == len(contents)  # type: ignore[arg-type]
