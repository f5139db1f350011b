"""What commands have in common: help with an example, a table for people, JSON for programs, one line a failure."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

HELP_WIDTH = 100
SHORT_DIGEST = 12
"""So many characters of a digest are shown to people."""

Column = tuple[str, Callable[[Row], Any]]


class CommandError(Exception):
    """The command cannot do what it was asked. The text is what is printed."""


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], help_: str, example: str
) -> argparse.ArgumentParser:
    """A parser for one command. ``run`` gets its arguments and returns the exit status."""
    description = textwrap.fill(help_[0].upper() + help_[1:] + ".", HELP_WIDTH)
    in_one_line = f"example:\n  {example}"  # as it is to be typed
    parser = add_parser(commands, name, help_, description, in_one_line)
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_parser(commands: Any, name: str, help_: str, description: str, examples: str) -> argparse.ArgumentParser:
    """A parser for a command, or a group of them, with help of several paragraphs, printed in the lines they have."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help_,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """``--json``, for every command that prints a table."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_reason_option(parser: argparse.ArgumentParser) -> None:
    """``--reason``, for every command that leaves a line in the history; the arguments call it ``comment``."""
    parser.add_argument("--reason", "--comment", dest="comment", default="", help="why; kept in the history")


def version_number(text: str) -> int:
    """A version as an argument: 1 to 999999999, as in selectors."""
    return _in_range(text, 1, 999_999_999, "no version; a number from 1 to 999999999 was expected")


def positive(text: str) -> int:
    """How many of something, as an argument: above 0, and no more than any message can hold."""
    return _in_range(text, 1, 2**31 - 1, "not right; a whole number above 0 was expected")


def not_negative(text: str) -> int:
    """The same, and 0."""
    return _in_range(text, 0, 2**31 - 1, "not right; a whole number, 0 or more, was expected")


def _in_range(text: str, low: int, high: int, complaint: str) -> int:
    if text.isdecimal() and low <= int(text[:20]) <= high:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is {complaint}")


def print_json(value: Any) -> None:
    """Indented, in the order given."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(rows: Sequence[Row], columns: Sequence[Column], empty: str) -> None:
    """Left-aligned columns; numbers to the right. ``empty`` is printed where there are no rows."""
    if not rows:
        print(empty)
        return
    cells = [[column(row) for _, column in columns] for row in rows]
    numeric = [all(isinstance(row[index], int | float) for row in cells) for index in range(len(columns))]
    texts = [[name for name, _ in columns], *([_text(cell) for cell in row] for row in cells)]
    widths = [max(len(row[index]) for row in texts) for index in range(len(columns))]
    for row in texts:
        padded = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        ]
        print("  ".join(padded).rstrip())


def write_text(path: Path, text: str) -> None:
    """A file that was asked for. Raises CommandError."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}.") from error


def printable(text: str) -> str:
    """What other people wrote, in one line: a line break would tear the table, an escape reach the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def short_time(text: str) -> str:
    """An ISO time to the second, as ``2026-11-20 14:03:59Z``."""
    return text[:19].replace("T", " ") + "Z" if text else ""


def short_bytes(size: int) -> str:
    """``1.3 GiB``; empty for nothing."""
    for unit, unit_bytes in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= unit_bytes:
            return f"{size / unit_bytes:.1f} {unit}"
    return f"{size} B" if size else ""


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return printable(str(cell))
