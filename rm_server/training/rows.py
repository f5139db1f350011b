"""Reads rows of JSON from files: JSON Lines, plain or gzipped, and Parquet; every complaint names file and line."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from rm_server.backends.items import ChatMessage, Content
from rm_server.errors import InvalidRequest

Row: TypeAlias = dict[str, Any]

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")


class BadData(InvalidRequest):
    """A data file that cannot be used as it is."""


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yields each row with its place, ``file:line`` (for Parquet ``file:row``, from 1). Empty lines are left out.

    Raises BadData for a file that is missing, of an unknown form, or broken.
    """
    if not path.name.endswith(_SUFFIXES):
        raise BadData(f"{path}: data files end in {', '.join(_SUFFIXES)}.")
    try:
        yield from _read_parquet(path) if path.suffix == ".parquet" else _read_json_lines(path)
    except UnicodeDecodeError as error:
        raise BadData(f"{path} is not UTF-8 text ({error}); a gzipped file's name must end in .gz.") from error
    except (OSError, EOFError) as error:
        raise BadData(f"{path} cannot be read: {error}") from error


def _read_json_lines(path: Path) -> Iterator[tuple[str, Row]]:
    open_text = gzip.open if path.suffix == ".gz" else open
    with open_text(path, "rt", encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise BadData(f"{place} is not JSON ({error}); one object per line is expected.") from None
            if not isinstance(row, dict):
                raise BadData(f"{place} is a JSON {type(row).__name__}; one object per line is expected.")
            yield place, row


def _read_parquet(path: Path) -> Iterator[tuple[str, Row]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", row
    except ArrowException as error:
        raise BadData(f"{path} cannot be read: {error}") from error


def content_of(row: Row, name: str, place: str) -> Content:
    """The field as text, chat messages (objects with role and content) or token ids.

    Raises BadData when it is missing, empty or of another form.
    """
    value = row.get(name)
    if value is None and name in row:
        raise BadData(f"{place}: `{name}` is null.")
    if value is None:
        raise BadData(f"{place} has no `{name}`; it has {', '.join(map(repr, row)) or 'nothing'}.")
    if not value:
        raise BadData(f"{place}: `{name}` is empty.")
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        if all(type(token) is int for token in value):
            return tuple(value)
        if all(isinstance(message, dict) for message in value):
            return tuple(_message_of(message, name, place) for message in value)
    raise BadData(f"{place}: `{name}` must be text, a list of messages with role and content, or a list of token ids.")


def _message_of(message: Row, name: str, place: str) -> ChatMessage:
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not isinstance(content, str):
        raise BadData(f"{place}: each message of `{name}` needs `role` and `content`, both text; got {message!r:.200}.")
    return ChatMessage(role, content)


def name_of(row: Row, name: str, place: str) -> str | None:
    """An optional field that names something: text, or a whole number. None where it is missing."""
    value = row.get(name)
    if value is None or isinstance(value, str):
        return value
    if type(value) is int:
        return str(value)
    raise BadData(f"{place}: `{name}` must be text or a whole number, not {value!r:.100}.")


def key_of(content: Content) -> str:
    """A short text that is the same for the same content only: SHA-256 of its form."""
    return hashlib.sha256(repr(content).encode("utf-8", "surrogatepass")).hexdigest()


def length_of(content: Content) -> int:
    """Characters of a text or of the messages' contents; of token ids, how many there are."""
    if isinstance(content, str):
        return len(content)
    return sum(len(part.content) if isinstance(part, ChatMessage) else 1 for part in content)
