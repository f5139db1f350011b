"""The score log on disk: Parquet files that appear when they are complete, and how they are read again.

A file is written under a hidden name, and renamed when its last byte is on the disk: a server that is killed leaves
whole files, and loses what was still in memory. Needs pyarrow, which is imported when there is something to do.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rm_server.backends.items import Content, is_messages
from rm_server.config import ConfigError
from rm_server.engine.work import ItemScore
from rm_server.errors import RmError
from rm_server.registry.records import CalibrationRecord
from rm_server.scoring.evaluation import Evaluated
from rm_server.scoring.routing import Route

PREFIX, SUFFIX = "scores-", ".parquet"
ABANDONED_AFTER_S = 3600.0
"""A hidden file older than this is what a killed server left."""
CLOCKS_APART_S = 600.0
"""By so much the clock of a server may be ahead of that of the disk it writes to."""


@dataclass(frozen=True, slots=True)
class LoggedCall:
    """One answered call. ``time_s`` since the epoch. ``group_sizes``: completions of each group.

    ``texts``: prompt and completion of each item; None: texts are not logged.
    """

    time_s: float
    request_id: str
    run: str
    route: Route
    calibration: CalibrationRecord | None
    group_sizes: tuple[int, ...]
    evaluated: Evaluated
    texts: Sequence[tuple[Content, Content]] | None


def check_pyarrow() -> None:
    """Raises ConfigError where it is missing."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise ConfigError("The score log needs pyarrow: pip install 'rm-service[parquet]'.") from None


def write_file(folder: Path, calls: Sequence[LoggedCall]) -> int:
    """Writes the calls' items as one file; how many they are. Raises OSError."""
    from pyarrow.parquet import write_table

    table = _table(calls)
    moment = datetime.fromtimestamp(calls[0].time_s, UTC)
    name = f"{PREFIX}{moment:%Y%m%dT%H%M%S}-{os.getpid()}-{os.urandom(4).hex()}{SUFFIX}"
    folder.mkdir(parents=True, exist_ok=True)
    hidden = folder / f".{name}"
    try:
        with hidden.open("wb") as file:
            write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        hidden.rename(folder / name)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise
    return int(table.num_rows)


def tidy(folder: Path, keep_mb: float) -> None:
    """Removes what killed servers left half written, and the oldest files beyond ``keep_mb`` (0: none).

    The newest file stays, however large it is.
    """
    for path in folder.glob(f".{PREFIX}*{SUFFIX}"):
        with suppress(FileNotFoundError):  # another server's, which is complete by now
            if time.time() - path.stat().st_mtime > ABANDONED_AFTER_S:
                path.unlink()
    left = keep_mb * 1024 * 1024
    for index, path in enumerate(reversed(log_files(folder)) if keep_mb else ()):
        with suppress(FileNotFoundError):
            left -= path.stat().st_size
            if left < 0 and index:
                path.unlink()


def log_files(folder: Path) -> list[Path]:
    """The complete files, the oldest first."""
    return sorted(folder.glob(f"{PREFIX}*{SUFFIX}"))


def read_scores(
    folder: Path, *, model: str = "", run: str = "", since: datetime | None = None, has_texts: bool = True
) -> Iterator[Any]:
    """The rows as tables of pyarrow, file by file; empty and None: all of them. ``has_texts`` False: without texts.

    Raises OSError, and pyarrow.ArrowException (of a file that is none of ours).
    """
    import pyarrow.compute as pc
    from pyarrow.parquet import read_table

    conditions = []
    if model:
        conditions.append(pc.field("model") == model)
    if run:
        conditions.append(pc.field("run") == run)
    if since is not None:
        conditions.append(pc.field("time") >= since)
    condition = None
    for one in conditions:
        condition = one if condition is None else condition & one
    schema = _schema()
    names = [name for name in schema.names if has_texts or name not in ("prompt", "completion")]
    for path in log_files(folder):
        with suppress(FileNotFoundError):  # a server that keeps no more (`keep_mb`) removed it meanwhile
            # What was closed before has nothing later: of a year of files only those of the last hours are opened.
            if since is not None and path.stat().st_mtime < since.timestamp() - CLOCKS_APART_S:
                continue
            yield read_table(path, columns=names, filters=condition, schema=schema)


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
            pa.field("model", pa.string(), nullable=False),
            pa.field("version", pa.int32(), nullable=False),
            pa.field("digest", pa.string(), nullable=False),
            pa.field("run", pa.string(), nullable=False),
            pa.field("label", pa.string()),
            pa.field("arm", pa.string()),
            pa.field("request_id", pa.string(), nullable=False),
            pa.field("group", pa.int32(), nullable=False),  # within the call: one prompt with its completions
            pa.field("score", pa.float64()),  # raw; none where there is an error
            pa.field("error", pa.string()),  # its reason
            pa.field("calibrated_score", pa.float64()),  # where that was asked for
            pa.field("calibration", pa.string()),  # digest
            pa.field("num_tokens", pa.int32(), nullable=False),
            pa.field("truncated", pa.bool_(), nullable=False),
            pa.field("prompt", pa.string()),  # where texts are logged
            pa.field("completion", pa.string()),
        ]
    )


def _table(calls: Sequence[LoggedCall]) -> Any:
    import pyarrow as pa

    schema = _schema()
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    for call in calls:
        for name, values in _columns(call).items():
            columns[name] += values
    return pa.table(columns, schema=schema)


def _columns(call: LoggedCall) -> dict[str, list[Any]]:
    route, outcomes = call.route, call.evaluated.outcomes
    num = len(outcomes)
    scores = [outcome.value if isinstance(outcome, ItemScore) else None for outcome in outcomes]
    mapped = [
        None if call.calibration is None or score is None else _finite(call.calibration.apply(score))
        for score in scores
    ]
    texts = call.texts or ()
    return {
        "time": [datetime.fromtimestamp(call.time_s, UTC)] * num,
        "model": [route.key[0]] * num,
        "version": [route.key[1]] * num,
        "digest": [route.digest] * num,
        "run": [call.run] * num,
        "label": [route.label] * num,
        "arm": [route.arm] * num,
        "request_id": [call.request_id] * num,
        "group": [index for index, size in enumerate(call.group_sizes) for _ in range(size)],
        "score": scores,
        "error": [outcome.reason if isinstance(outcome, RmError) else None for outcome in outcomes],
        "calibrated_score": mapped,
        "calibration": [None if call.calibration is None else call.calibration.digest] * num,
        "num_tokens": call.evaluated.num_tokens,
        "truncated": call.evaluated.truncated,
        "prompt": [_text(prompt) for prompt, _ in texts] or [None] * num,
        "completion": [_text(completion) for _, completion in texts] or [None] * num,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _text(content: Content) -> str:
    """Text as it is; messages and ids as JSON. A lone surrogate, which no file can hold, becomes a question mark."""
    if isinstance(content, str):
        return str(content).encode("utf-8", "replace").decode()
    if is_messages(content):
        return json.dumps([{"role": message.role, "content": message.content} for message in content])
    return json.dumps(list(content))
