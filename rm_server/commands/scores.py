"""`rm-server scores`: what the score log says, row by row, and each version's scores in figures."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rm_server.commands.common import (
    CommandError,
    Row,
    add_command,
    add_json_option,
    positive,
    print_json,
    print_table,
    short_time,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

DEFAULT_FOLDER = "scores"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def add_parsers(commands: Any) -> None:
    """Adds the command of this file."""
    parser = add_command(
        commands,
        "scores",
        run_scores,
        "the score log: the newest rows, and each version's scores in figures",
        "rm-server scores --home models --model helpfulness --since 2h",
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("path", nargs="?", type=Path, help="the folder of the log (score_log.path)")
    where.add_argument("--home", type=Path, metavar="DIR", help=f"as a path, DIR/{DEFAULT_FOLDER}")
    parser.add_argument("--model", default="", help="only this one")
    parser.add_argument("--run", dest="run_id", default="", help="only this training run")
    parser.add_argument(
        "--since", type=_moment, metavar="TIME", help="only since then: 30m, 2h, 7d, or 2026-01-31T12:00 (UTC)"
    )
    parser.add_argument("--limit", type=positive, default=20, help="rows to print, the newest (default: 20)")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="write all rows there, not only the newest")
    add_json_option(parser)


def run_scores(arguments: argparse.Namespace) -> int:
    """Reads the files that are complete; what a server still has in memory comes with its next file."""
    from rm_server.scoring.score_files import check_pyarrow, log_files

    check_pyarrow()
    folder = arguments.path or arguments.home / DEFAULT_FOLDER
    if not folder.is_dir() or not log_files(folder):
        raise CommandError(f"{folder} has no score log; a server that runs with `score_log.path` set writes one.")
    summaries: dict[tuple[str, int], _Summary] = {}
    newest: Any = None
    for table in _tables(folder, arguments):
        _add(summaries, table)
        newest = _newest(newest, table, arguments.limit)
    summary = [summaries[key].row(*key) for key in sorted(summaries)]
    rows = [] if newest is None else list(_rows(newest))
    if arguments.out is not None:
        _write(arguments.out, (row for table in _tables(folder, arguments, has_texts=True) for row in _rows(table)))
    if arguments.json:
        print_json({"summary": summary, "rows": rows})
        return 0
    _print(rows, summary)
    return 0


@dataclass(slots=True)
class _Summary:
    """One version's scores."""

    scores: list[npt.NDArray[np.float64]] = field(default_factory=list)
    num_errors: int = 0
    num_truncated: int = 0

    def row(self, model: str, version: int) -> Row:
        """In figures. Those that need a score, or two for a spread, are left out where there are fewer."""
        import numpy as np

        scores = np.concatenate(self.scores)
        figures: dict[str, Any] = {"model": model, "version": version, "scores": len(scores), "errors": self.num_errors,
                        "truncated": self.num_truncated}  # fmt: skip
        if len(scores):
            quantiles = dict(zip(map(str, QUANTILES), np.quantile(scores, QUANTILES).tolist(), strict=True))
            figures |= {"mean": float(scores.mean()), "quantiles": quantiles}
        if len(scores) > 1:
            figures["std"] = float(scores.std())
        return figures


def _tables(folder: Path, arguments: argparse.Namespace, *, has_texts: bool = False) -> Iterator[Any]:
    from pyarrow import ArrowException

    from rm_server.scoring.score_files import read_scores

    shows_texts = has_texts or arguments.json
    try:
        yield from read_scores(
            folder,
            model=arguments.model,
            run=arguments.run_id,
            since=arguments.since,
            has_texts=shows_texts,
        )
    except (OSError, ArrowException) as error:
        raise CommandError(f"The score log in {folder} cannot be read: {error}") from error


def _add(summaries: dict[tuple[str, int], _Summary], table: Any) -> None:
    import pyarrow.compute as pc

    keys = table.group_by(["model", "version"]).aggregate([])
    for model, version in zip(keys["model"].to_pylist(), keys["version"].to_pylist(), strict=True):
        part = table.filter((pc.field("model") == model) & (pc.field("version") == version))
        summary = summaries.setdefault((model, version), _Summary())
        summary.scores.append(part["score"].drop_null().to_numpy())
        summary.num_errors += part["score"].null_count
        summary.num_truncated += pc.sum(part["truncated"]).as_py() or 0


def _newest(newest: Any, table: Any, limit: int) -> Any:
    import pyarrow as pa

    together = table if newest is None else pa.concat_tables([newest, table])
    in_order = together.sort_by("time")
    return in_order.slice(max(0, in_order.num_rows - limit))


def _rows(table: Any) -> Iterator[Row]:
    """What is not there (an error, a calibration, texts) has no key."""
    for row in table.to_pylist():
        row["time"] = row["time"].isoformat().replace("+00:00", "Z")
        yield {name: value for name, value in row.items() if value is not None}


def _write(path: Path, rows: Iterable[Row]) -> None:
    try:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}.") from error


def _print(rows: list[Row], summary: list[Row]) -> None:
    print_table(
        rows,
        (
            ("TIME", lambda row: short_time(row["time"])),
            ("MODEL", lambda row: row["model"]),
            ("VERSION", lambda row: row["version"]),
            ("RUN", lambda row: row["run"]),
            ("ARM", lambda row: row.get("arm")),
            ("REQUEST", lambda row: row["request_id"]),
            ("SCORE", lambda row: row.get("score", row.get("error"))),
            ("TOKENS", lambda row: row["num_tokens"]),
            ("TRUNCATED", lambda row: "yes" if row["truncated"] else ""),
        ),
        empty="No row of the score log is meant by that.",
    )
    if summary:
        print()
        print_table(
            summary,
            (
                ("MODEL", lambda row: row["model"]),
                ("VERSION", lambda row: row["version"]),
                ("SCORES", lambda row: row["scores"]),
                ("ERRORS", lambda row: row["errors"]),
                ("TRUNCATED", lambda row: row["truncated"]),
                ("MEAN", lambda row: row.get("mean")),
                ("STD", lambda row: row.get("std", "-")),
                *((f"{q:.0%}", lambda row, q=q: row.get("quantiles", {}).get(str(q))) for q in QUANTILES),
            ),
            empty="",
        )


def _moment(text: str) -> datetime:
    """A point in time, or how long ago it was."""
    try:
        if (ago := re.fullmatch(r"(\d+)([smhd])", text)) is not None:
            return datetime.now(UTC) - timedelta(seconds=int(ago[1]) * _UNITS_S[ago[2]])
        moment = datetime.fromisoformat(text)
    except (OverflowError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is no time: 30m, 2h, 7d or 2026-01-31T12:00 was expected") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
