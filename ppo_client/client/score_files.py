"""Scores the rows of a file into another file; a run that was interrupted goes on where it was.

Beside the output grows a journal, `OUTPUT.partial`: a line that says what is being done, then one line for each row,
in order. All rows are scored by one version: the one that scored the first rows, pinned by its digest from then on,
in later runs, too. When the last row is in, rows and journal become the output in one step.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ppo_client.client.client import RewardClient
from ppo_client.client.errors import InvalidFile, InvalidRequest, ItemsFailed, ItemsUnavailable
from ppo_client.client.records import Row, read_rows, write_rows
from ppo_client.client.score_call import ScoreOptions, TruncationRule
from ppo_client.client.scores import Scores

_BATCHES_UNDER_WAY = 4


@dataclass(frozen=True, slots=True)
class ScoreJob:
    """What is to be done. Rows have the prompt in ``prompt_field`` (empty: there is none) and the completion in
    ``completion_field``; the score goes into ``score_field``, and what belongs to it into fields that begin so.

    ``keep_going``: a row that cannot be scored gets an error in place of its score, instead of ending the run.
    """

    source: Path
    output: Path
    model: str
    prompt_field: str = "prompt"
    completion_field: str = "completion"
    score_field: str = "score"
    calibrated: bool = False
    truncation: TruncationRule | None = None
    keep_going: bool = False
    batch_size: int = 256

    def identity(self) -> dict[str, Any]:
        """What must be the same when a run goes on."""
        names = ("model", "prompt_field", "completion_field", "score_field", "calibrated", "truncation")
        with self.source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {name: getattr(self, name) for name in names} | {"input_sha256": digest}


@dataclass(frozen=True, slots=True)
class Summary:
    """What was done: ``rows`` = ``scored`` + ``failed``; ``resumed``: of them, those that were there already."""

    rows: int
    scored: int
    failed: int
    resumed: int
    model: str
    version: int
    digest: str


@dataclass(frozen=True, slots=True)
class _Pin:
    """The version that scores the whole file."""

    model: str
    version: int
    digest: str


def score_file(
    client: RewardClient, job: ScoreJob, *, on_progress: Callable[[int, int, int], None] = lambda *_: None
) -> Summary:
    """Does the job, or what is left of it. ``on_progress``: called with rows done, rows in all, rows failed.

    Raises InvalidFile, and what RewardClient raises; then what was done until there is kept.
    """
    if job.output.exists():
        raise InvalidFile(f"{job.output} is there already; remove it, or choose another name")
    total = _check_rows(job)
    journal = Journal(job.output.with_name(job.output.name + ".partial"), job.identity())
    resumed = journal.num_rows
    on_progress(resumed, total, journal.num_failed)
    with journal:
        for rows, outcome in _outcomes(client, job, journal):
            journal.add(*_lines(rows, outcome, job.keep_going))
            on_progress(journal.num_rows, total, journal.num_failed)
    write_rows(job.output, _merged(job, journal))
    journal.path.unlink()
    pin = journal.pin or _Pin(job.model, 0, "")  # an empty file was scored by nobody
    scored = journal.num_rows - journal.num_failed
    return Summary(journal.num_rows, scored, journal.num_failed, resumed, pin.model, pin.version, pin.digest)


def _outcomes(
    client: RewardClient, job: ScoreJob, journal: Journal
) -> Iterator[tuple[list[Row], Scores | ItemsFailed]]:
    """Batches of the rows that are left with what became of them, in order; a few are under way at a time."""
    rows = islice(read_rows(job.source), journal.num_rows, None)
    num_sent = journal.num_rows
    under_way: deque[tuple[list[Row], Future[Scores]]] = deque()
    try:
        while True:
            # The first batch goes alone: it says which version the others are for.
            while len(under_way) < (_BATCHES_UNDER_WAY if journal.pin else 1):
                if not (batch := list(islice(rows, job.batch_size))):
                    break
                try:
                    under_way.append((batch, _submit(client, job, journal.pin, batch)))
                except InvalidRequest as error:
                    raise InvalidFile(f"{job.source}, in the rows from number {num_sent + 1} on: {error}") from error
                num_sent += len(batch)
            if not under_way:
                return
            batch, future = under_way.popleft()
            try:
                yield batch, future.result()
            except ItemsFailed as error:
                yield batch, error
    finally:
        for _, future in under_way:
            future.cancel()


def _submit(client: RewardClient, job: ScoreJob, pin: _Pin | None, rows: list[Row]) -> Future[Scores]:
    options: ScoreOptions = {"calibrated": job.calibrated, "truncation": job.truncation}
    if pin is not None:
        options["expected_digest"] = pin.digest
    return client.submit(
        f"{pin.model}@{pin.version}" if pin else job.model,
        prompts=[row[job.prompt_field] if job.prompt_field else "" for row in rows],
        completions=[row[job.completion_field] for row in rows],
        **options,
    )


def _lines(rows: list[Row], outcome: Scores | ItemsFailed, keep_going: bool) -> tuple[_Pin, list[Row]]:
    """What the journal gets for these rows."""
    pin = _Pin(outcome.model, outcome.version, outcome.digest)
    if isinstance(outcome, Scores):
        pairs = zip(outcome.values, outcome.truncated, strict=True)
        return pin, [{"score": value, "truncated": is_cut} for value, is_cut in pairs]
    # What may get its score later is left for later: an error in the file is for ever.
    if not keep_going or isinstance(outcome, ItemsUnavailable):
        raise outcome
    return pin, [
        {"score": outcome.scores[index], "truncated": outcome.truncated[index]}
        if index in outcome.scores
        else {"error": f"{type(outcome.errors[index]).__name__}: {outcome.errors[index]}"}
        for index in range(len(rows))
    ]


def _check_rows(job: ScoreJob) -> int:
    """Reads the input once, so that what is wrong with it shows at the beginning. Returns the number of rows."""
    needed = [name for name in (job.prompt_field, job.completion_field) if name]
    added = {job.score_field, *(f"{job.score_field}_{name}" for name in ("truncated", "error", "version", "digest"))}
    number = 0
    for number, row in enumerate(read_rows(job.source), start=1):
        if missing := [name for name in needed if row.get(name) is None]:
            raise InvalidFile(
                f"{job.source}, row {number} has no {missing[0]!r}, only {sorted(row)}; name other fields?"
            )
        if taken := added & row.keys():
            raise InvalidFile(
                f"{job.source}, row {number} has a field {min(taken)!r} already; choose another name for the score's"
            )
    return number


def _merged(job: ScoreJob, journal: Journal) -> Iterator[Row]:
    name, pin = job.score_field, journal.pin
    for row, line in zip(read_rows(job.source), journal.lines(), strict=True):
        assert pin is not None
        scored = {f"{name}_{key}" if key != "score" else name: value for key, value in line.items()}
        yield row | scored | {f"{name}_version": f"{pin.model}@{pin.version}", f"{name}_digest": pin.digest}


class Journal:
    """What has been done of a job: opened anew, it is where it was. A line that was torn off is not counted."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self.pin: _Pin | None = None
        self.num_rows = 0
        self.num_failed = 0
        self._identity = identity
        if path.exists():
            self._resume()
        self._file = path.open("ab")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, pin: _Pin, lines: list[Row]) -> None:
        """Appends the lines of the next rows; they are on disk when it returns."""
        if self.pin is None:
            self.pin = pin
            self._write(self._identity | {"scored_by": asdict(pin)})
        for line in lines:
            self._write(line)
        self._file.flush()
        os.fsync(self._file.fileno())
        self.num_rows += len(lines)
        self.num_failed += sum("error" in line for line in lines)

    def lines(self) -> Iterator[Row]:
        """One for each row."""
        with self.path.open("rb") as file:
            yield from islice(map(json.loads, file), 1, None)

    def _write(self, line: Row) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")

    def _resume(self) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        header, *lines = [json.loads(line) for line in whole.splitlines()] or [None]
        if header is None:
            return
        self.pin = _Pin(**header.pop("scored_by"))
        if changed := [name for name, value in self._identity.items() if header.get(name) != value]:
            raise InvalidFile(
                f"{self.path} is of a run with another {' and '.join(changed)}; finish that one, or remove the file to "
                "start anew"
            )
        self.num_rows = len(lines)
        self.num_failed = sum("error" in line for line in lines)
