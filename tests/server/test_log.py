"""One line an event, whatever is in it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from rm_server import log


@pytest.fixture(autouse=True)
def restored_loggers() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("rm_server")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def lines_of(format_: str) -> list[str]:
    stream = io.StringIO()
    log.set_up("info", format_, stream)
    logger = logging.getLogger("rm_server.example")
    logger.debug("not shown")
    logging.getLogger("alembic").info("not shown")
    logger.info("version loaded", extra={"model": "helpfulness", "version": 3, "load_s": 1.25, "comment": 'a "b"\nc'})
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("call failed", extra={"request_id": "r1", "run": None})
    return stream.getvalue().splitlines()


def test_logfmt_keeps_each_event_on_one_line() -> None:
    loaded, failed = lines_of("logfmt")
    assert loaded.endswith(
        r'level=info logger=rm_server.example event="version loaded" model=helpfulness version=3 load_s=1.25 '
        r'comment="a \"b\"\nc"'
    )
    assert 'event="call failed" request_id=r1 trace="Traceback' in failed
    assert "run=" not in failed


def test_json_keeps_types() -> None:
    loaded, failed = map(json.loads, lines_of("json"))
    assert (loaded["version"], loaded["load_s"], loaded["comment"]) == (3, 1.25, 'a "b"\nc')
    assert failed["trace"].splitlines()[-2:] == ["ValueError: two", "lines"]
    assert failed["level"] == "error"
