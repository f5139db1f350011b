"""Data files as rows with their places: JSON Lines, an array of JSON, CSV, all with .gz, too, and Parquet."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from rm_server.errors import InvalidRequest

Row: TypeAlias = dict[str, Any]


class BadData(InvalidRequest):
    """A data file that cannot be used as it is."""


def read_rows(path: Path, text_fields: Collection[str] = ()) -> Iterator[tuple[str, Row]]:
    """Yields each row with its place: ``file:line`` of JSON Lines, else ``file:row`` from 1. Empty lines are left out.

    What a CSV column is, its values say, but for ``text_fields``: an answer like 042 is text, as it stands.
    Raises BadData for a file that is missing, of an unknown form, or broken.
    """
    if path.is_dir():
        raise BadData(
            f"{path} is a folder; a file is needed. From a dataset: `load_from_disk({str(path)!r}).to_parquet(FILE)`."
        )
    if not path.exists():
        raise BadData(f"{path} cannot be read: there is no such file.")
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind not in (*_READERS, "csv") or path.name.endswith(".parquet.gz"):
        raise BadData(f"{path}: data files end in .jsonl, .json, .csv, each with .gz, too, or in .parquet.")
    try:
        yield from _read_csv(path, text_fields) if kind == "csv" else _READERS[kind](path)
    except UnicodeDecodeError as error:
        raise BadData(f"{path} is not UTF-8 text ({error}); a gzipped file's name must end in .gz.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise BadData(f"{path} cannot be read: {error}") from error


def _read_json_lines(path: Path) -> Iterator[tuple[str, Row]]:
    with _open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise BadData(f"{place} is not JSON ({error}); one object per line is expected.") from None
            yield place, _object(row, place, "one object per line is expected")


def _read_json(path: Path) -> Iterator[tuple[str, Row]]:
    with _open_text(path) as file:
        text = file.read()
    if not text.lstrip().startswith("["):
        yield from _read_json_lines(path)
        return
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadData(f"{path} is not JSON ({error}).") from None
    for place, row in _numbered(path, rows):
        yield place, _object(row, place, "an array of objects is expected")


def _read_csv(path: Path, text_fields: Collection[str]) -> Iterator[tuple[str, Row]]:
    from pyarrow import ArrowException, csv, string

    form = csv.ParseOptions(newlines_in_values=True)  # a text may have several lines
    types = csv.ConvertOptions(column_types=dict.fromkeys(text_fields, string()))
    try:
        # By its name, a .gz is unpacked.
        table = csv.read_csv(str(path), parse_options=form, convert_options=types)
    except ArrowException as error:
        raise BadData(f"{path} cannot be read as values between commas: {error}") from error
    if twice := sorted({name for name in table.column_names if name and table.column_names.count(name) > 1}):
        raise BadData(f"{path} has more than one column named {', '.join(twice)}; which is meant?")
    yield from _numbered(path, (row for batch in table.to_batches() for row in batch.to_pylist()))


def _read_parquet(path: Path) -> Iterator[tuple[str, Row]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            yield from _numbered(path, (row for batch in file.iter_batches() for row in batch.to_pylist()))
    except ArrowException as error:
        raise BadData(f"{path} cannot be read: {error}") from error


def _open_text(path: Path) -> Any:
    open_text = gzip.open if path.suffix == ".gz" else open
    return open_text(path, "rt", encoding="utf-8-sig")


def _object(value: Any, place: str, expected: str) -> Row:
    if not isinstance(value, dict):
        raise BadData(f"{place} is a JSON {type(value).__name__}; {expected}.")
    return value


def _numbered(path: Path, rows: Iterable[Row]) -> Iterator[tuple[str, Row]]:
    return ((f"{path}:{number}", row) for number, row in enumerate(rows, start=1))


_READERS: dict[str, Callable[[Path], Iterator[tuple[str, Row]]]] = {
    "jsonl": _read_json_lines,
    "json": _read_json,
    "parquet": _read_parquet,
}
