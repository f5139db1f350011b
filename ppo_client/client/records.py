"""Rows of JSON Lines (plain or gzipped) and Parquet files. Parquet needs pyarrow, which is imported when it is met."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
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
    """Writes them in the format that the name says; the file appears when it is complete. Raises InvalidFile."""
    write = _WRITERS[_format_of(path)]
    with _appearing(path) as temporary:
        write(temporary, rows)


def write_with_fields(path: Path, source: Path, fields: Mapping[str, type], values: Iterable[Row]) -> None:
    """Writes the rows of ``source`` with more fields: ``values`` has a row for each, without those that have no value.

    From Parquet to Parquet all columns stay as they are, and one is added for each of ``fields``. Raises InvalidFile.
    """
    if {_format_of(path), _format_of(source)} != {".parquet"}:
        write_rows(path, (row | added for row, added in zip(read_rows(source), values, strict=True)))
        return
    with _appearing(path) as temporary:
        _extend_parquet(temporary, source, fields, iter(values))


def checked_rows(source: Path, output: Path) -> Iterator[Row]:
    """The rows of ``source``, as they are found to be such that `write_with_fields` can write them to ``output``.

    So what cannot be written shows before hours of work, not after. Raises InvalidFile.
    """
    if not output.parent.is_dir():
        raise InvalidFile(f"{output}: there is no folder {output.parent}; make it, or choose another name")
    read, written = _format_of(source), _format_of(output)
    if written == ".parquet" and read != ".parquet":
        yield from _fitting_a_table(read_rows(source))
    elif written != ".parquet" and read == ".parquet":
        for number, row in enumerate(read_rows(source), start=1):
            _line(row, number)
            yield row
    else:
        yield from read_rows(source)


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
        file.write(_line(row, number) + b"\n")


def _line(row: Row, number: int) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(row).encode()  # half of a surrogate pair, which has no UTF-8; escaped it stays what it is
    except TypeError as error:
        raise InvalidFile(f"row {number} cannot be written as JSON: {error}; write Parquet instead") from None


def _read_parquet(path: Path) -> Iterator[Row]:
    arrow, parquet = _pyarrow(""), _pyarrow("parquet")
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_CHUNK_ROWS):
                yield from batch.to_pylist()
    except arrow.ArrowException as error:
        raise InvalidFile(f"{path} cannot be read: {error}") from error


def _write_parquet(path: Path, rows: Iterable[Row]) -> None:
    arrow, parquet = _pyarrow(""), _pyarrow("parquet")
    tables = [table for _, table in _tables(rows)]
    parquet.write_table(_joined(tables) if tables else arrow.table({}), path)


def _fitting_a_table(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows. Raises InvalidFile where their fields have no common types."""
    shapes = []
    for chunk, table in _tables(rows):
        shapes.append(table.slice(0, 0))
        yield from chunk
    if shapes:
        _joined(shapes)


def _tables(rows: Iterable[Row]) -> Iterator[tuple[list[Row], Any]]:
    """Rows, a chunk at a time, and what Arrow makes of them."""
    arrow = _pyarrow("")
    rows = iter(rows)
    while chunk := list(islice(rows, _CHUNK_ROWS)):
        # A column that begins late must be there from the start: Arrow takes the names from the first row.
        names = list(dict.fromkeys(name for row in chunk for name in row))
        try:
            yield chunk, arrow.Table.from_pylist([{name: row.get(name) for name in names} for row in chunk])
        except (arrow.ArrowException, ValueError, OverflowError) as error:
            raise InvalidFile(f"the rows are no table: {error}; write .jsonl instead of Parquet") from error


def _joined(tables: list[Any]) -> Any:
    arrow = _pyarrow("")
    try:
        return arrow.concat_tables(tables, promote_options="permissive")
    except arrow.ArrowException as error:
        raise InvalidFile(f"the rows are no table: {error}; write .jsonl instead of Parquet") from error


def _extend_parquet(path: Path, source: Path, fields: Mapping[str, type], values: Iterator[Row]) -> None:
    arrow, parquet = _pyarrow(""), _pyarrow("parquet")
    types = {float: arrow.float64(), bool: arrow.bool_(), str: arrow.string()}
    added = [arrow.field(name, types[kind]) for name, kind in fields.items()]
    with parquet.ParquetFile(source) as file:
        schema = file.schema_arrow
        for field in added:
            schema = schema.append(field)
        with parquet.ParquetWriter(path, schema) as writer:
            for batch in file.iter_batches(batch_size=_CHUNK_ROWS):
                rows = list(islice(values, batch.num_rows))
                columns = [arrow.array([row.get(field.name) for row in rows], field.type) for field in added]
                writer.write_batch(arrow.RecordBatch.from_arrays([*batch.columns, *columns], schema=schema))


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
