"""The rows of a data file, or those of them that have a value."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ppo_client.client.data_files import Row, rows_of
from ppo_client.client.errors import InvalidFile
from ppo_client.ppo.errors import DataError

_NUM_VALUES_TOLD = 5


def read_rows(path: Path, where: str = "", text_fields: Collection[str] = ()) -> Iterator[tuple[str, Row]]:
    """The rows of a file of any format that `data_files` reads, each with its place for messages.

    `where` is `field=value` or empty: only rows whose field is the text `value`, a number that prints so, or, for
    `true` and `false` in any case, that boolean. `text_fields`: as in `rows_of`. Raises DataError, also where no row
    is; it names what there is.
    """
    name, _, wanted = where.partition("=")
    fields, others, is_found = dict[str, None](), dict[str, None](), not where
    for place, row in _readable(path, text_fields):
        if not where or (name in row and _is(row[name], wanted)):
            is_found = True
            yield place, row
        elif not is_found:
            fields |= dict.fromkeys(row)
            others |= dict.fromkeys([_text(row[name])] if name in row else ())
    if not is_found:
        raise DataError(f"{path}: no rows with {where}: {_what_there_is(name, list(fields), list(others))}")


def check_unicode(text: str, place: str) -> None:
    """Raises DataError for half of a surrogate pair, which JSON can hold and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: no valid Unicode text: {error}; was it cut within a character?") from None


def _readable(path: Path, text_fields: Collection[str]) -> Iterator[tuple[str, Row]]:
    try:
        yield from rows_of(path, text_fields)
    except InvalidFile as error:
        raise DataError(str(error)) from error


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
