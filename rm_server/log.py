"""The server's log: one line an event, `key=value` (logfmt) or JSON, written to stderr."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def event_of(record: logging.LogRecord) -> dict[str, Any]:
    """What the line says: time (UTC), level, logger, event, the ``extra`` fields, and the trace if there is one."""
    event: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": record.getMessage(),
    }
    event |= {key: value for key, value in vars(record).items() if key not in _STANDARD_FIELDS and value is not None}
    if record.exc_info:
        event["trace"] = logging.Formatter().formatException(record.exc_info)
    return event


class LogfmtFormatter(logging.Formatter):
    """``time=… level=info logger=… event="version loaded" model=helpfulness``; a value with spaces is quoted."""

    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{key}={_logfmt_value(value)}" for key, value in event_of(record).items())


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(event_of(record), ensure_ascii=False, default=str)


def set_up(level: str, format_: str, stream: TextIO | None = None) -> None:
    """Sends everything logged in this process to ``stream`` (stderr); replaces what was set up before.

    ``level`` is ours; other packages are heard from warnings on, or as we are where that is less.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if format_ == "json" else LogfmtFormatter())
    ours = logging.getLevelNamesMapping()[level.upper()]
    others = logging.DEBUG if ours == logging.DEBUG else max(ours, logging.WARNING)
    logging.basicConfig(level=others, handlers=[handler], force=True)
    logging.getLogger("rm_server").setLevel(ours)


def _logfmt_value(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    if text and not any(character in text for character in ' ="\\') and text.isprintable():
        return text
    return json.dumps(text, ensure_ascii=False)
