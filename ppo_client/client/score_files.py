"""Scores the rows of a file into another file; a run that was interrupted goes on where it was.

Beside the output grows a journal, `OUTPUT.partial` (see score_journal.py). All rows are scored by one version: the one
that scored the first rows, pinned by its digest from then on, in later runs, too, and with the calibration it had. When
the last row is in, rows and journal become the output in one step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ppo_client.client.client import RewardClient
from ppo_client.client.content import check_pair
from ppo_client.client.data_files import Row, file_digest, rows_of
from ppo_client.client.errors import (
    InvalidFile,
    InvalidRequest,
    InvalidSettings,
    ItemsFailed,
    ItemsUnavailable,
    RewardClientError,
    UnsupportedContent,
)
from ppo_client.client.row_writer import checked_rows, write_with_fields
from ppo_client.client.score_call import ScoreOptions, TruncationRule
from ppo_client.client.score_journal import Journal, Pin
from ppo_client.client.scores import Scores

_BATCHES_UNDER_WAY = 4
_WAIT_TOLD_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class ScoreJob:
    """What is to be done. Rows have the prompt in ``prompt_field`` (empty: there is none) and the completion in
    ``completion_field``; the score goes into ``score_field``, and what belongs to it into fields that begin so.

    ``rendered``: as in ScoreOptions. ``keep_going``: a row that cannot be scored gets an error in place of its score,
    instead of ending the run.
    """

    source: Path
    output: Path
    model: str
    prompt_field: str = "prompt"
    completion_field: str = "completion"
    score_field: str = "score"
    calibrated: bool = False
    truncation: TruncationRule | None = None
    rendered: bool = False
    keep_going: bool = False
    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InvalidSettings(f"batch_size must be at least 1, got {self.batch_size}")
        if not self.score_field or not self.completion_field:
            raise InvalidSettings("score_field and completion_field must name fields")

    @property
    def contents(self) -> list[str]:
        """The fields that are scored."""
        return [name for name in (self.prompt_field, self.completion_field) if name]

    def identity(self) -> dict[str, Any]:
        """What must be the same when a run goes on."""
        names = ("model", "prompt_field", "completion_field", "score_field", "calibrated", "truncation", "rendered")
        return {name: getattr(self, name) for name in names} | {"input_sha256": file_digest(self.source)}


@dataclass(frozen=True, slots=True)
class Summary:
    """What was done: ``rows`` = ``scored`` + ``failed``; ``resumed``: of them, those that were there already.

    ``version``, ``digest``: None where there were no rows, which nobody scored.
    """

    rows: int
    scored: int
    failed: int
    resumed: int
    model: str
    version: int | None
    digest: str | None


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows of one call. Those that cannot be sent are ``refused``, by index."""

    rows: list[Row]
    refused: dict[int, InvalidRequest]

    @property
    def sent(self) -> list[int]:
        """The others, by index."""
        return [index for index in range(len(self.rows)) if index not in self.refused]


def score_file(
    client: RewardClient,
    job: ScoreJob,
    *,
    on_progress: Callable[[int, int, int], None] = lambda *_: None,
    on_wait: Callable[[float], None] = lambda _: None,
) -> Summary:
    """Does the job, or what is left of it. ``on_progress``: called with rows done, rows in all, rows failed;
    ``on_wait``: now and then while no answer comes, with the seconds that it has been waited for.

    Raises InvalidFile, and what RewardClient raises; then what was done until there is kept.
    """
    _check_is_new(job.output)
    total = _check_rows(job)
    identity = job.identity()
    with Journal(job.output.with_name(job.output.name + ".partial"), identity) as journal:
        _check_is_new(job.output)  # of whoever had the journal before
        resumed = journal.num_rows
        on_progress(resumed, total, journal.num_failed)
        for batch, outcome in _outcomes(client, job, journal, on_wait):
            journal.add(*_lines(job, journal.num_rows, batch, outcome))
            on_progress(journal.num_rows, total, journal.num_failed)
        # Rows are read anew to be written beside their scores, hours later perhaps.
        if job.identity() != identity:
            raise InvalidFile(
                f"{job.source} changed while its rows were scored, so that it has no longer the rows that the scores "
                f"belong to: put it back, or remove {journal.path} to begin again"
            )
        fields, values = _added_fields(job, journal), _added(job, journal)
        write_with_fields(job.output, job.source, fields, values, job.contents)
        journal.path.unlink()
    pin = journal.pin
    return Summary(
        rows=journal.num_rows,
        scored=journal.num_rows - journal.num_failed,
        failed=journal.num_failed,
        resumed=resumed,
        model=pin.model if pin else job.model,
        version=pin.version if pin else None,
        digest=pin.digest if pin else None,
    )


def _check_is_new(output: Path) -> None:
    if output.exists():
        raise InvalidFile(f"{output} is there already; remove it, or choose another name")


def _outcomes(
    client: RewardClient, job: ScoreJob, journal: Journal, on_wait: Callable[[float], None]
) -> Iterator[tuple[_Batch, Scores | ItemsFailed]]:
    """Batches of the rows that are left with what became of them, in order; a few are under way at a time."""
    rows = (row for _, row in islice(rows_of(job.source, job.contents), journal.num_rows, None))
    under_way: deque[tuple[_Batch, Future[Scores]]] = deque()
    try:
        while True:
            # The first batch goes alone: it says which version the others are for.
            while len(under_way) < (_BATCHES_UNDER_WAY if journal.pin else 1):
                if not (taken := list(islice(rows, job.batch_size))):
                    break
                refusals = enumerate(_refusal(job, row) for row in taken)
                batch = _Batch(taken, {index: error for index, error in refusals if error is not None})
                under_way.append((batch, _submit(client, job, journal.pin, batch)))
            if not under_way:
                return
            batch, future = under_way.popleft()
            try:
                yield batch, _awaited(future, on_wait)
            except ItemsFailed as error:
                yield batch, error
    finally:
        for _, future in under_way:
            future.cancel()


def _awaited(future: Future[Scores], on_wait: Callable[[float], None]) -> Scores:
    waited_s = 0.0
    while not wait((future,), timeout=_WAIT_TOLD_EVERY_S).done:
        waited_s += _WAIT_TOLD_EVERY_S
        on_wait(waited_s)
    return future.result()


def _submit(client: RewardClient, job: ScoreJob, pin: Pin | None, batch: _Batch) -> Future[Scores]:
    rows = [batch.rows[index] for index in batch.sent]
    options: ScoreOptions = {"calibrated": job.calibrated, "truncation": job.truncation, "rendered": job.rendered}
    if pin is not None:
        options["expected_digest"] = pin.digest
    return client.submit(
        f"{pin.model}@{pin.version}" if pin else job.model,
        prompts=[row[job.prompt_field] if job.prompt_field else "" for row in rows],
        completions=[row[job.completion_field] for row in rows],
        **options,
    )


def _lines(job: ScoreJob, first: int, batch: _Batch, outcome: Scores | ItemsFailed) -> tuple[Pin, list[Row]]:
    """What the journal gets for these rows, the first of which is number ``first``, from 0."""
    if isinstance(outcome, Scores):
        pairs = zip(outcome.values, outcome.truncated, strict=True)
        answers = [{"score": value, "truncated": is_cut} for value, is_cut in pairs]
    # What may get its score later is left for later: an error in the file is for ever.
    elif not job.keep_going or outcome.passing:
        raise _by_rows(job, [first + index + 1 for index in batch.sent], outcome) from outcome
    else:
        answers = [
            {"score": outcome.scores[place], "truncated": outcome.truncated[place]}
            if place in outcome.scores
            else _error_line(outcome.errors[place])
            for place in range(len(batch.sent))
        ]
    lines = {index: _error_line(error) for index, error in batch.refused.items()}
    lines |= zip(batch.sent, answers, strict=True)
    calibration = outcome.calibration.digest if outcome.calibration else None
    pin = Pin(outcome.model, outcome.version, outcome.digest, calibration)
    return pin, [lines[index] for index in range(len(batch.rows))]


def _error_line(error: RewardClientError) -> Row:
    return {"error": f"{type(error).__name__}: {error}"}


def _by_rows(job: ScoreJob, numbers: list[int], failed: ItemsFailed) -> ItemsFailed:
    """The same failure, told by the ``numbers`` of the file's rows, from 1 as in all messages about it.

    Of a job that keeps going: of the rows that may get a score later, for the others do not end it.
    """
    told = failed.passing if job.keep_going else failed.errors
    errors = {numbers[place]: error for place, error in told.items()}
    kind = ItemsUnavailable if len(told) == len(failed.passing) else ItemsFailed
    number, error = min(errors.items())
    others = f", and {len(errors) - 1} more of the rows {numbers[0]} to {numbers[-1]}" if len(errors) > 1 else ""
    advice = "the same command goes on from there"
    if kind is ItemsFailed:
        advice = "correct it, or write errors in place of such scores (--keep-going)"
    return kind(
        f"{job.source}: no score for row {number}, {type(error).__name__}: {error}{others}; {advice}",
        errors=errors,
        scores={numbers[place]: value for place, value in failed.scores.items()},
        truncated={numbers[place]: is_cut for place, is_cut in failed.truncated.items()},
        model=failed.model,
        version=failed.version,
        digest=failed.digest,
        calibration=failed.calibration,
    )


def _check_rows(job: ScoreJob) -> int:
    """Reads the input once, so that what is wrong with it shows at the beginning. Returns the number of rows."""
    added = {job.score_field, *(f"{job.score_field}_{name}" for name in ("truncated", "error", "version", "digest"))}
    count = 0
    for place, row in checked_rows(job.source, job.output, job.contents):
        count += 1
        if missing := [name for name in job.contents if name not in row]:
            raise InvalidFile(f"{place} has no {missing[0]!r}, only {sorted(row)}; name other fields?")
        if taken := added & row.keys():
            raise InvalidFile(f"{place} has a field {min(taken)!r} already; choose another name for the score's")
        if not job.keep_going and (error := _refusal(job, row)):
            raise InvalidFile(f"{place}: {error}") from error
    return count


def _refusal(job: ScoreJob, row: Row) -> InvalidRequest | None:
    """Why the row's content cannot be sent; None: it can."""
    for name in filter(None, (job.prompt_field, job.completion_field)):
        if row[name] is None:
            return UnsupportedContent(f"{name!r} is null; text, chat messages or token ids are expected")
    try:
        prompt = row[job.prompt_field] if job.prompt_field else ""
        check_pair(prompt, row[job.completion_field], is_rendered=job.rendered)
    except InvalidRequest as error:
        return error
    return None


def _added_fields(job: ScoreJob, journal: Journal) -> dict[str, type]:
    name = job.score_field
    fields: dict[str, type] = {name: float, f"{name}_truncated": bool}
    if journal.num_failed:
        fields[f"{name}_error"] = str
    return fields | {f"{name}_version": str, f"{name}_digest": str}


def _added(job: ScoreJob, journal: Journal) -> Iterator[Row]:
    """What each row gets, in order."""
    name, pin = job.score_field, journal.pin
    for line in journal.lines():
        assert pin is not None
        scored = {f"{name}_{key}" if key != "score" else name: value for key, value in line.items()}
        yield scored | {f"{name}_version": f"{pin.model}@{pin.version}", f"{name}_digest": pin.digest}
