"""The score log: what is taken, when files are closed, what happens when the disk fails or the process is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fake_versions import until

from rm_server.backends.items import ChatMessage
from rm_server.config import ConfigError, ScoreLogSettings
from rm_server.engine.work import ItemScore
from rm_server.errors import EmptyItem
from rm_server.registry.records import CalibrationRecord
from rm_server.scoring import score_log
from rm_server.scoring.evaluation import Evaluated
from rm_server.scoring.routing import Route
from rm_server.scoring.score_files import ABANDONED_AFTER_S, CLOCKS_APART_S, log_files, read_scores, tidy
from rm_server.scoring.score_log import ScoreLog
from rm_server.scoring.scorer import ScoreCall

ROUTE = Route(("m", 3), "d" * 64, "stable", "b", "split")
CALL = ScoreCall("m", (("hi", ("one", "two")), ("", ("three",))), run="exp-17", request_id="r1")
CALIBRATION = CalibrationRecord("c" * 64, 2.0, 1.0)


def evaluated(*values: float | None) -> Evaluated:
    outcomes = [EmptyItem("none") if value is None else ItemScore(value, 0.0, 0.0) for value in values]
    return Evaluated(list(outcomes), [value == 2.0 for value in values], [7] * len(values), 0.0)


class Counted:
    def __init__(self) -> None:
        self.items = {"written": 0, "dropped": 0}

    def scores_logged(self, outcome: str, num_items: int) -> None:
        self.items[outcome] += num_items


def make(folder: Path, **settings: Any) -> tuple[ScoreLog, Counted]:
    counted = Counted()
    return ScoreLog(folder, ScoreLogSettings(path=folder, **settings), counted, clock=lambda: 1.5e9), counted


def take(log: ScoreLog, calibration: CalibrationRecord | None = None) -> None:
    log.scored(CALL, ROUTE, evaluated(1.0, None, 2.0), calibration)


def rows(folder: Path, **which: Any) -> list[dict[str, Any]]:
    return [row for table in read_scores(folder, **which) for row in table.to_pylist()]


async def test_a_row_an_item_with_everything_about_it(tmp_path: Path) -> None:
    log, counted = make(tmp_path)
    take(log, CALIBRATION)
    await log.flush()
    first, second, third = rows(tmp_path)
    assert first == {
        "time": datetime.fromtimestamp(1.5e9, UTC),
        "model": "m",
        "version": 3,
        "digest": "d" * 64,
        "run": "exp-17",
        "label": "stable",
        "arm": "b",
        "request_id": "r1",
        "group": 0,
        "score": 1.0,
        "error": None,
        "calibrated_score": 3.0,
        "calibration": "c" * 64,
        "num_tokens": 7,
        "truncated": False,
        "prompt": None,
        "completion": None,
    }
    assert (second["score"], second["calibrated_score"], second["error"]) == (None, None, "empty_item")
    assert (third["group"], third["truncated"]) == (1, True)
    assert counted.items == {"written": 3, "dropped": 0}


async def test_texts_only_if_allowed(tmp_path: Path) -> None:
    log, _ = make(tmp_path, log_texts=True)
    chat = (ChatMessage("user", "hé"),)
    log.scored(ScoreCall("m", ((chat, ((1, 2), "a\ud800b")),)), ROUTE, evaluated(1.0, 2.0), None)
    await log.flush()
    assert [(row["prompt"], row["completion"]) for row in rows(tmp_path)] == [
        ('[{"role": "user", "content": "h\\u00e9"}]', "[1, 2]"),
        ('[{"role": "user", "content": "h\\u00e9"}]', "a?b"),
    ]
    assert "prompt" not in rows(tmp_path, has_texts=False)[0]


async def test_a_share_of_the_calls_is_taken(tmp_path: Path) -> None:
    draws = iter([0.2, 0.3, 0.1])
    log = ScoreLog(tmp_path, ScoreLogSettings(path=tmp_path, share=0.25), Counted(), draw=lambda: next(draws))
    for number in range(3):
        log.scored(replace(CALL, request_id=str(number)), ROUTE, evaluated(1.0, 2.0, 3.0), None)
    await log.flush()
    assert {row["request_id"] for row in rows(tmp_path)} == {"0", "2"}


@pytest.mark.parametrize(
    "limit", [{"rotate_rows": 6}, {"rotate_mb": 0.003}, {"rotate_s": 0.01}, {"max_buffered_mb": 0.004}]
)
async def test_a_file_is_closed_when_it_is_full_or_old(tmp_path: Path, limit: dict[str, Any]) -> None:
    log, _ = make(tmp_path / "not made yet", **limit)
    running = asyncio.create_task(log.run())
    take(log)
    take(log)
    await until(lambda: len(rows(tmp_path / "not made yet")) == 6)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_less_than_a_file_waits_and_is_written_at_the_end(tmp_path: Path) -> None:
    log, _ = make(tmp_path, rotate_rows=4)
    running = asyncio.create_task(log.run())
    take(log)
    await asyncio.sleep(0)
    assert log_files(tmp_path) == []
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await log.stop()
    assert len(rows(tmp_path)) == 3


async def test_beyond_the_bound_items_are_dropped_and_counted(tmp_path: Path) -> None:
    log, counted = make(tmp_path, max_buffered_mb=0.004)  # two calls of some 1.7 kB
    for _ in range(5):
        take(log)
    assert counted.items["dropped"] == 9
    await log.flush()
    take(log)
    await log.flush()
    assert counted.items == {"written": 9, "dropped": 9}


async def test_what_rows_repeat_counts_for_each_of_them(tmp_path: Path) -> None:
    log, counted = make(tmp_path, max_buffered_mb=1, log_texts=True)
    scored = evaluated(*[1.0] * 64)
    for prompt, request_id in (("p" * 20_000, "r1"), ("", "r" * 20_000)):
        log.scored(ScoreCall("m", ((prompt, ("c",) * 64),), request_id=request_id), ROUTE, scored, None)
    assert counted.items == {"written": 0, "dropped": 128}


async def test_a_disk_that_fails_loses_nothing_that_fits(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file where the folder should be")
    log, counted = make(tmp_path / "log", max_buffered_mb=0.004)
    take(log)
    with pytest.raises(OSError, match="log"):
        await log.flush()
    take(log)
    take(log)
    assert counted.items == {"written": 0, "dropped": 3}
    (tmp_path / "log").unlink()
    await log.flush()
    assert len(rows(tmp_path / "log")) == 6


async def test_the_writer_goes_on_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_log, "RETRY_S", 0.01)
    (tmp_path / "log").write_text("in the way")
    log, counted = make(tmp_path / "log", rotate_rows=1, rotate_s=0.01)
    running = asyncio.create_task(log.run())
    take(log)
    await until(lambda: log._one_write.locked())
    (tmp_path / "log").unlink()
    await until(lambda: counted.items["written"] == 3)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_the_writer_goes_on_where_it_cannot_tidy_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tidy_elsewhere(folder: Path, keep_mb: float) -> None:
        monkeypatch.setattr(score_log, "tidy", tidy)
        raise PermissionError(13, "not yours")

    monkeypatch.setattr(score_log, "tidy", tidy_elsewhere)
    log, counted = make(tmp_path, rotate_rows=1)
    writing = asyncio.ensure_future(log.run())
    take(log)
    await until(lambda: writing.done() or counted.items["written"] == 3)
    assert not writing.done()
    writing.cancel()


async def test_stopping_says_what_is_lost(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("in the way")
    log, counted = make(tmp_path / "log")
    take(log)
    await log.stop()
    assert counted.items == {"written": 0, "dropped": 3}


async def test_rows_are_found_by_model_run_and_time(tmp_path: Path) -> None:
    log, _ = make(tmp_path)
    take(log)
    log.scored(replace(CALL, run="other"), replace(ROUTE, key=("n", 1)), evaluated(4.0, 5.0, 6.0), None)
    await log.flush()
    assert {row["model"] for row in rows(tmp_path, run="other")} == {"n"}
    assert len(rows(tmp_path, model="m")) == 3
    assert rows(tmp_path, model="m", run="other") == []
    assert len(rows(tmp_path, since=datetime.fromtimestamp(1.5e9, UTC))) == 6
    assert rows(tmp_path, since=datetime.fromtimestamp(1.5e9 + 1, UTC)) == []


async def test_files_that_were_closed_long_before_are_not_opened(tmp_path: Path) -> None:
    log, _ = make(tmp_path)
    for _ in range(2):
        take(log)
        await log.flush()
    oldest, newest = log_files(tmp_path)
    oldest.write_text("not to be read")
    os.utime(oldest, (1.5e9 - CLOCKS_APART_S - 1, 1.5e9 - CLOCKS_APART_S - 1))
    os.utime(newest, (1.5e9 - 1, 1.5e9 - 1))
    assert len(rows(tmp_path, since=datetime.fromtimestamp(1.5e9, UTC))) == 3


@pytest.mark.parametrize("since", [None, datetime.fromtimestamp(1e9, UTC)])
async def test_files_that_a_server_removes_while_they_are_read_are_passed_over(
    tmp_path: Path, since: datetime | None
) -> None:
    log, _ = make(tmp_path)
    for _ in range(3):
        take(log)
        await log.flush()
    tables = read_scores(tmp_path, since=since)
    assert next(tables).num_rows == 3
    log_files(tmp_path)[1].unlink()
    assert [table.num_rows for table in tables] == [3]


def test_what_is_old_or_abandoned_is_removed(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"scores-2026010{number}.parquet").write_bytes(b"x" * 400_000)
    abandoned, fresh = (tmp_path / f".scores-{name}.parquet" for name in ("abandoned", "fresh"))
    for hidden in (abandoned, fresh):
        hidden.write_bytes(b"")
    old = time.time() - ABANDONED_AFTER_S - 1
    os.utime(abandoned, (old, old))
    tidy(tmp_path, 0)
    assert (len(log_files(tmp_path)), abandoned.exists(), fresh.exists()) == (4, False, True)
    tidy(tmp_path, 1.0)
    assert [path.name for path in log_files(tmp_path)] == ["scores-20260102.parquet", "scores-20260103.parquet"]
    tidy(tmp_path, 0.1)
    assert [path.name for path in log_files(tmp_path)] == ["scores-20260103.parquet"]


@pytest.mark.parametrize("wrong", [{"share": 1.5}, {"rotate_rows": 0}, {"rotate_s": 0}, {"keep_mb": -1}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ScoreLogSettings(**wrong)


WRITER = """
import sys
from pathlib import Path
from rm_server.engine.work import ItemScore
from rm_server.scoring.evaluation import Evaluated
from rm_server.scoring.routing import Route
from rm_server.scoring.score_files import LoggedCall, write_file
outcomes = [ItemScore(float(i), 0.0, 0.0) for i in range(2000)]
call = LoggedCall(1.5e9, "r", "run", Route(("m", 1), "d"), None, (2000,), Evaluated(outcomes, [False] * 2000, [1] * 2000, 0.0), None)
while True:
    write_file(Path(sys.argv[1]), [call] * 5)
"""  # noqa: E501


def test_a_kill_leaves_whole_files_only(tmp_path: Path) -> None:
    kills_in_a_file = 0
    for number in range(1, 21):
        folder = tmp_path / str(number)
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stderr=subprocess.PIPE)
        while writer.poll() is None and len(log_files(folder)) < 2:
            time.sleep(0.001)
        while writer.poll() is None and not list(folder.glob(".scores-*")):
            pass  # for a moment: until it is in the middle of the next file
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL, writer.stderr and writer.stderr.read().decode()
        files = log_files(folder)
        assert len(files) >= 2
        assert len(rows(folder)) == 10_000 * len(files)
        kills_in_a_file += bool(list(folder.glob(".scores-*")))
        if kills_in_a_file == 3:
            return
    pytest.fail("No kill came in the middle of a file.")
