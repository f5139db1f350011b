"""Rows into JSON Lines (plain or gzipped) and Parquet files, which appear when they are complete."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import date, time
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar

from ppo_client.client.data_files import CHUNK_ROWS, Row, import_pyarrow, rows_of
from ppo_client.client.errors import InvalidFile

_T = TypeVar("_T")


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes them in the format that the name says; the file appears when it is complete. Raises InvalidFile."""
    write = _writer_of(path)
    with _appearing(path) as temporary:
        write(temporary, rows)


def write_with_fields(
    path: Path,
    source: Path,
    fields: Mapping[str, type],
    values: Iterable[Row],
    text_fields: Collection[str] = (),
) -> None:
    """Writes the rows of ``source`` with more fields: ``values`` has a row for each, without those that have no value.

    ``text_fields``: as in `rows_of`. From Parquet to Parquet all columns stay as they are, and one is added for each of
    ``fields``. Raises InvalidFile.
    """
    if not (_is_parquet(path) and _is_parquet(source)):
        rows = (row for _, row in rows_of(source, text_fields))
        write_rows(path, (row | added for row, added in zip(rows, values, strict=True)))
        return
    with _appearing(path) as temporary:
        _extend_parquet(temporary, source, fields, iter(values))


def checked_rows(source: Path, output: Path, text_fields: Collection[str] = ()) -> Iterator[tuple[str, Row]]:
    """The rows of ``source`` with their places, found to be such that `write_with_fields` can write them to ``output``.

    So what cannot be written shows before hours of work, not after. ``text_fields``: as in `rows_of`. Raises
    InvalidFile.
    """
    if not output.parent.is_dir():
        raise InvalidFile(f"{output}: there is no folder {output.parent}; make it, or choose another name")
    _writer_of(output)
    if not _is_parquet(output):
        for number, (place, row) in enumerate(rows_of(source, text_fields), start=1):
            _line(row, number)
            yield place, row
    elif _is_parquet(source):
        yield from rows_of(source)
    else:
        yield from _fitting_a_table(rows_of(source, text_fields))


@contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to, which takes its place in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InvalidFile(f"{path} cannot be written: {error}") from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _is_parquet(path: Path) -> bool:
    return path.name.endswith(".parquet")


def _writer_of(path: Path) -> Callable[[Path, Iterable[Row]], None]:
    for ending, write in _WRITERS.items():
        if path.name.endswith(ending):
            return write
    raise InvalidFile(
        f"{path}: the name must end with .jsonl, .jsonl.gz or .parquet, so that it is known what to write"
    )


def _write_json(path: Path, rows: Iterable[Row]) -> None:
    with path.open("wb") as file:
        _print(file, rows)


def _write_gzip(path: Path, rows: Iterable[Row]) -> None:
    # Without name and time, the same rows are the same bytes.
    with path.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        _print(file, rows)


def _print(file: IO[bytes] | gzip.GzipFile, rows: Iterable[Row]) -> None:
    for number, row in enumerate(rows, start=1):
        file.write(_line(row, number) + b"\n")


def _line(row: Row, number: int) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, default=_iso).encode()
    except UnicodeEncodeError:
        return json.dumps(row, default=_iso).encode()  # half of a surrogate pair has no UTF-8; escaped it stays itself
    except TypeError as error:
        raise InvalidFile(f"row {number} cannot be written as JSON: {error}; write Parquet instead") from None


def _iso(value: Any) -> str:
    """What a table has as a date or a time, which JSON has not."""
    if isinstance(value, (date, time)):
        return value.isoformat()
    raise TypeError(f"a value of type {type(value).__name__} has no JSON")


def _write_parquet(path: Path, rows: Iterable[Row]) -> None:
    arrow = import_pyarrow("Parquet")
    tables = [_table(chunk) for chunk in _chunks(rows)]
    arrow.parquet.write_table(_joined(tables) if tables else arrow.table({}), path)


def _fitting_a_table(rows: Iterable[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    """The rows with their places. Raises InvalidFile where their fields have no common types."""
    shapes = []
    for chunk in _chunks(rows):
        shapes.append(_table([row for _, row in chunk]).slice(0, 0))
        yield from chunk
    if shapes:
        _joined(shapes)


def _chunks(rows: Iterable[_T]) -> Iterator[list[_T]]:
    rows = iter(rows)
    while chunk := list(islice(rows, CHUNK_ROWS)):
        yield chunk


def _table(rows: list[Row]) -> Any:
    """What Arrow makes of rows."""
    arrow = import_pyarrow("Parquet")
    # A column that begins late must be there from the start: Arrow takes the names from the first row.
    names = list(dict.fromkeys(name for row in rows for name in row))
    try:
        return arrow.Table.from_pylist([{name: row.get(name) for name in names} for row in rows])
    except (arrow.ArrowException, ValueError, OverflowError) as error:
        raise InvalidFile(f"the rows are no table: {error}; write .jsonl instead of Parquet") from error


def _joined(tables: list[Any]) -> Any:
    arrow = import_pyarrow("Parquet")
    try:
        return arrow.concat_tables(tables, promote_options="permissive")
    except arrow.ArrowException as error:
        raise InvalidFile(f"the rows are no table: {error}; write .jsonl instead of Parquet") from error


def _extend_parquet(path: Path, source: Path, fields: Mapping[str, type], values: Iterator[Row]) -> None:
    arrow = import_pyarrow("Parquet")
    types = {float: arrow.float64(), bool: arrow.bool_(), str: arrow.string()}
    added = [arrow.field(name, types[kind]) for name, kind in fields.items()]
    with arrow.parquet.ParquetFile(source) as file:
        schema = file.schema_arrow
        for field in added:
            schema = schema.append(field)
        with arrow.parquet.ParquetWriter(path, schema) as writer:
            for batch in file.iter_batches(batch_size=CHUNK_ROWS):
                rows = list(islice(values, batch.num_rows))
                columns = [arrow.array([row.get(field.name) for row in rows], field.type) for field in added]
                writer.write_batch(arrow.RecordBatch.from_arrays([*batch.columns, *columns], schema=schema))


_WRITERS: dict[str, Callable[[Path, Iterable[Row]], None]] = {
    ".jsonl": _write_json,
    ".json": _write_json,
    ".jsonl.gz": _write_gzip,
    ".json.gz": _write_gzip,
    ".parquet": _write_parquet,
}
