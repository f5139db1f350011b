"""Data files of every format that is read, as rows with their places. What a format needs is imported with it."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeAlias

from ppo_client.client.errors import InvalidFile

Row: TypeAlias = dict[str, Any]

_FORMATS = (
    ".jsonl, .json (an object a line, or one array of them), .csv, these with .gz, too, .parquet, or a folder by "
    "datasets' save_to_disk"
)

CHUNK_ROWS = 10_000
"""Rows of a Parquet file that are in memory at a time."""


def rows_of(path: Path, text_fields: Collection[str] = ()) -> Iterator[tuple[str, Row]]:
    """The rows with their places for messages, "FILE, line 3" or "FILE, row 3", from 1.

    Numbers, booleans and None keep their types; what a CSV column is, its values say, but for ``text_fields``: an
    answer like 042 is text, as it stands. Raises InvalidFile.
    """
    read = _reader_of(path, text_fields)
    try:
        yield from read(path)
    except InvalidFile:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InvalidFile(f"{path} cannot be read: {error}") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's: of their names and digests."""
    if path.is_dir():
        inside = sorted(place for place in path.rglob("*") if place.is_file())
        told = "".join(f"{place.relative_to(path)} {file_digest(place)}\n" for place in inside)
        return hashlib.sha256(told.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def import_pyarrow(wanted_for: str) -> Any:
    """The package, with its modules ``csv`` and ``parquet``. Raises InvalidFile where it is not installed."""
    try:
        import pyarrow
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError:
        raise InvalidFile(f"{wanted_for} needs pyarrow: `pip install pyarrow`, or use .jsonl") from None
    return pyarrow


def _reader_of(path: Path, text_fields: Collection[str]) -> Callable[[Path], Iterator[tuple[str, Row]]]:
    if path.is_dir():
        return _read_folder
    if not path.is_file():
        raise InvalidFile(f"{path} cannot be read: there is no such file")
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "csv":
        return partial(_read_csv, text_fields=text_fields)
    if kind not in _READERS or path.name.endswith(".parquet.gz"):
        raise InvalidFile(
            f"{path}: nothing is known of {path.suffix or 'names without an ending'}; read are {_FORMATS}"
        )
    return _READERS[kind]


def _read_json_lines(path: Path) -> Iterator[tuple[str, Row]]:
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                place = f"{path}, line {number}"
                yield place, _object(_parsed(line, place), place)


def _read_json(path: Path) -> Iterator[tuple[str, Row]]:
    with _opened(path) as file:
        content = file.read()
    if not content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        yield from _read_json_lines(path)
        return
    for place, row in _numbered(path, _parsed(content, str(path))):
        yield place, _object(row, place)


def _read_csv(path: Path, text_fields: Collection[str]) -> Iterator[tuple[str, Row]]:
    arrow = import_pyarrow("CSV")
    form = arrow.csv.ParseOptions(newlines_in_values=True)  # a text may have several lines
    types = arrow.csv.ConvertOptions(column_types=dict.fromkeys(text_fields, arrow.string()))
    try:
        # By its name, a .gz is unpacked.
        table = arrow.csv.read_csv(str(path), parse_options=form, convert_options=types)
    except arrow.ArrowException as error:
        raise InvalidFile(f"{path} cannot be read as values between commas: {error}") from error
    if twice := sorted({name for name in table.column_names if name and table.column_names.count(name) > 1}):
        raise InvalidFile(f"{path} has more than one column named {', '.join(twice)}; which is meant?")
    for place, row in _numbered(path, (row for batch in table.to_batches() for row in batch.to_pylist())):
        yield f"{place} after the header", row


def _read_parquet(path: Path) -> Iterator[tuple[str, Row]]:
    arrow = import_pyarrow("Parquet")
    try:
        with arrow.parquet.ParquetFile(path) as file:
            batches = file.iter_batches(batch_size=CHUNK_ROWS)
            yield from _numbered(path, (row for batch in batches for row in batch.to_pylist()))
    except arrow.ArrowException as error:
        raise InvalidFile(f"{path} cannot be read: {error}") from error


def _read_folder(path: Path) -> Iterator[tuple[str, Row]]:
    splits = path / "dataset_dict.json"
    if splits.is_file():
        names = json.loads(splits.read_bytes())["splits"]
        raise InvalidFile(
            f"{path} has the splits {', '.join(names)}: name the folder of one, such as {path / names[0]}"
        )
    if not (path / "state.json").is_file():
        raise InvalidFile(f"{path} is a folder, and datasets' save_to_disk did not make it; read are {_FORMATS}")
    try:
        from datasets import load_from_disk
    except ImportError:
        raise InvalidFile(f"{path}: to read a folder, `pip install datasets`, or use a file") from None
    yield from _numbered(path, load_from_disk(str(path)).with_format(None))


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _parsed(text: bytes, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidFile(f"{place}: not JSON in UTF-8 ({error})") from error


def _object(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise InvalidFile(f"{place}: an object is expected, this is {type(value).__name__}")
    return value


def _numbered(path: Path, rows: Iterable[Row]) -> Iterator[tuple[str, Row]]:
    return ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1))


_READERS: dict[str, Callable[[Path], Iterator[tuple[str, Row]]]] = {
    "jsonl": _read_json_lines,
    "json": _read_json,
    "parquet": _read_parquet,
}
