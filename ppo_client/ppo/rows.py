"""Rows of data files, each with its place in the file, and the choice of those that have a value."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from ppo_client.ppo.errors import DataError

Row: TypeAlias = dict[str, Any]

_NUM_VALUES_TOLD = 5


def read_rows(path: Path, where: str = "") -> Iterator[tuple[str, Row]]:
    """The objects of a JSON Lines file (`.gz` too), each with its place, "FILE, line 3", from 1, for messages.

    `where` is `field=value` or empty: only rows whose field is the text `value`, a number that prints so, or, for
    `true` and `false` in any case, that boolean. Raises DataError, also where no row is; it names what there is.
    """
    if not path.is_file():
        raise DataError(f"no file at {path}")
    name, _, wanted = where.partition("=")
    fields, others, is_found = dict[str, None](), dict[str, None](), not where
    for place, row in _json_lines(path):
        if not where or (name in row and _is(row[name], wanted)):
            is_found = True
            yield place, row
        elif not is_found:
            fields |= dict.fromkeys(row)
            others |= dict.fromkeys([_text(row[name])] if name in row else ())
    if not is_found:
        raise DataError(f"{path}: no rows with {where}: {_what_there_is(name, list(fields), list(others))}")


def _is(value: Any, wanted: str) -> bool:
    return _text(value) == (wanted.lower() if isinstance(value, bool) else wanted)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _what_there_is(name: str, fields: list[str], values: list[str]) -> str:
    if not fields:
        return "the file has none at all"
    if not values:
        return f"none has a field {name!r}; there are {', '.join(fields)}"
    told = [f"{value!r:.40}" for value in islice(values, _NUM_VALUES_TOLD)]
    return f"{name} is {', '.join(told)}{', …' if len(values) > len(told) else ''}"


def _json_lines(path: Path) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{place}: not JSON in UTF-8 ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{place}: an object is expected, this is {type(row).__name__}")
        yield place, row


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            yield from file
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
