"""Rows of JSON Lines (plain or gzipped) and Parquet files. Parquet needs pyarrow, which is imported when it is met."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeAlias

from ppo_client.client.errors import InvalidFile

Row: TypeAlias = dict[str, Any]

_CHUNK_ROWS = 10_000


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of ``*.jsonl``, ``*.jsonl.gz`` (or ``.json``, ``.json.gz``) and ``*.parquet``, in order."""
    try:
        yield from _READERS[_format_of(path)](path)
    except (OSError, EOFError) as error:
        raise InvalidFile(f"{path} cannot be read: {error}") from error


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes them in the format that the name says; the file appears when it is complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _WRITERS[_format_of(path)](temporary, rows)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _format_of(path: Path) -> str:
    suffixes = [suffix for suffix in path.suffixes[-2:] if suffix in (".jsonl", ".json", ".gz", ".parquet")]
    name = "".join(suffixes).replace(".jsonl", ".json")
    if name not in _READERS:
        raise InvalidFile(f"{path}: the name must end with .jsonl, .jsonl.gz or .parquet, so that its format is known")
    return name


def _read_json(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        yield from _parse(path, file)


def _read_gzip(path: Path) -> Iterator[Row]:
    with gzip.open(path, "rb") as file:
        yield from _parse(path, file)


def _parse(path: Path, lines: Iterable[bytes]) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InvalidFile(f"{path}, line {number} is no JSON: {error}") from None
        if not isinstance(row, dict):
            raise InvalidFile(
                f"{path}, line {number} is {type(row).__name__}; a JSON object with named fields is expected"
            )
        yield row


def _write_json(path: Path, rows: Iterable[Row]) -> None:
    with path.open("wb") as file:
        _print(file, rows)


def _write_gzip(path: Path, rows: Iterable[Row]) -> None:
    # Without name and time, the same rows are the same bytes.
    with path.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        _print(file, rows)


def _print(file: IO[bytes] | gzip.GzipFile, rows: Iterable[Row]) -> None:
    for number, row in enumerate(rows, start=1):
        try:
            line = json.dumps(row, ensure_ascii=False)
        except TypeError as error:
            raise InvalidFile(f"row {number} cannot be written as JSON: {error}; write Parquet instead") from None
        file.write(line.encode() + b"\n")


def _read_parquet(path: Path) -> Iterator[Row]:
    parquet = _pyarrow("parquet")
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_CHUNK_ROWS):
            yield from batch.to_pylist()


def _write_parquet(path: Path, rows: Iterable[Row]) -> None:
    arrow, parquet = _pyarrow(""), _pyarrow("parquet")
    rows = iter(rows)
    chunks = []
    while chunk := list(islice(rows, _CHUNK_ROWS)):
        # A column that begins late must be there from the start: Arrow takes the names from the first row.
        names = list(dict.fromkeys(name for row in chunk for name in row))
        chunks.append(arrow.Table.from_pylist([{name: row.get(name) for name in names} for row in chunk]))
    table = arrow.concat_tables(chunks, promote_options="permissive") if chunks else arrow.table({})
    parquet.write_table(table, path)


def _pyarrow(module: str) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InvalidFile("Parquet files need pyarrow: `pip install pyarrow`, or use .jsonl") from None
    return getattr(pyarrow, module) if module else pyarrow


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".json": _read_json,
    ".json.gz": _read_gzip,
    ".parquet": _read_parquet,
}
_WRITERS: dict[str, Callable[[Path, Iterable[Row]], None]] = {
    ".json": _write_json,
    ".json.gz": _write_gzip,
    ".parquet": _write_parquet,
}
