"""`ppo-client score`: the scores of a file's rows, from the command line."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ppo_client.client.client import RewardClient
from ppo_client.client.score_files import ScoreJob, score_file

_EXAMPLES = """examples:
  ppo-client score pairs.jsonl.gz scored.jsonl.gz --model helpfulness@stable --server localhost:50051
  ppo-client score answers.parquet scored.parquet --model helpfulness@3 --completion-field answer --calibrated
  ppo-client score texts.csv scored.jsonl --model grammar --prompt-field '' --completion-field text --keep-going

A run that is interrupted goes on where it was when the same command is given again; exit status 75 says that this may
help, for the server was away or did not answer in time. All rows are scored by one version.
"""


def add_parser(subparsers: Any) -> None:
    """Adds the command; its ``run`` takes the parsed arguments and returns the exit status."""
    parser = subparsers.add_parser(
        "score",
        help="scores the rows of a data file",
        description="Scores the rows of a file (.jsonl, .json, .csv, each with .gz, too, .parquet, or a folder by "
        "datasets' save_to_disk) into another one (.jsonl, .jsonl.gz, .parquet).",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", type=Path, help="rows with a prompt and a completion: text, chat messages, token ids")
    parser.add_argument("output", type=Path, help="the same rows with their scores")
    parser.add_argument("--model", required=True, help="selector: name, name@3 or name@label")
    parser.add_argument("--server", help="host:port, several with commas; default: RM_TARGET")
    parser.add_argument("--prompt-field", default="prompt", help="'' where there are no prompts (default: %(default)s)")
    parser.add_argument("--completion-field", default="completion", help="(default: %(default)s)")
    parser.add_argument("--score-field", default="score", help="where the score goes (default: %(default)s)")
    parser.add_argument("--calibrated", action="store_true", help="scores on the model's common scale")
    parser.add_argument(
        "--truncation", choices=("refuse", "keep_end", "keep_start"), help="default: the version's rule"
    )
    parser.add_argument(
        "--rendered",
        action="store_true",
        help="prompt and completion are one text that a chat template has rendered before: the model's BOS comes once, "
        "whether the text begins with it or not",
    )
    parser.add_argument(
        "--keep-going", action="store_true", help="a row that has no score gets an error, and exit is 1"
    )
    parser.add_argument("--batch-size", type=int, default=256, help="rows of one call (default: %(default)s)")
    parser.add_argument(
        "--timeout-s", type=float, default=300.0, help="of one call, with retries (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="prints the summary as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The exit status: 0 if every row has a score, 1 if some have an error instead."""
    job = ScoreJob(
        source=args.input,
        output=args.output,
        model=args.model,
        prompt_field=args.prompt_field,
        completion_field=args.completion_field,
        score_field=args.score_field,
        calibrated=args.calibrated,
        truncation=args.truncation,
        rendered=args.rendered,
        keep_going=args.keep_going,
        batch_size=args.batch_size,
    )
    progress = Progress(args.timeout_s)
    with RewardClient(args.server, timeout_s=args.timeout_s) as client:
        try:
            summary = score_file(client, job, on_progress=progress.show, on_wait=progress.wait)
        finally:
            progress.end()
    if args.json:
        print(json.dumps(asdict(summary) | {"output": str(job.output)}))
    elif not summary.rows:
        print(f"{job.source} has no rows, so there was nothing to score: {job.output}")
    else:
        resumed = f", {summary.resumed} of them in an earlier run" if summary.resumed else ""
        print(
            f"{summary.scored} rows scored by {summary.model}@{summary.version} (digest {summary.digest:.12}){resumed}"
            f", {summary.failed} failed: {job.output}"
        )
    return 1 if summary.failed else 0


class Progress:
    """How far it is, on standard error: a line that changes in a terminal, a line now and then elsewhere."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._is_terminal = sys.stderr.isatty()
        self._pause_s = 0.1 if self._is_terminal else 10.0
        self._began = time.monotonic()
        self._first: int | None = None
        self._shown_at = float("-inf")

    def show(self, done: int, total: int, failed: int) -> None:
        """At most so often that it can be read."""
        now = time.monotonic()
        if self._first is None:
            self._first = done
        if now - self._shown_at < self._pause_s and done < total:
            return
        self._shown_at = now
        rate = (done - self._first) / max(now - self._began, 1e-9)
        text = f"{done} of {total} rows ({done / max(total, 1):.0%}), {rate:.0f} rows/s, {failed} failed"
        print(f"\r{text}" if self._is_terminal else text, end="" if self._is_terminal else "\n", file=sys.stderr)

    def wait(self, seconds: float) -> None:
        """No answer has come for so long."""
        self.end()
        print(f"no answer for {seconds:.0f} s; a call is given up after {self._timeout_s:g} s", file=sys.stderr)

    def end(self) -> None:
        """Leaves the line."""
        if self._is_terminal:
            print(file=sys.stderr)
