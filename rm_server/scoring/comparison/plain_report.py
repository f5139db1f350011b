"""What the reports on shadows and on experiments are made of: plain values, as `--json` prints them."""

from __future__ import annotations

from typing import Any, TypeAlias

Report: TypeAlias = dict[str, Any]
"""What is undefined has no key."""


def without_undefined(report: Report) -> Report:
    """The same without what is None, at any depth; tuples become lists."""
    return {name: _plain(part) for name, part in report.items() if part is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return without_undefined(value)
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value
