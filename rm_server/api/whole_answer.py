"""For protocols with no room for an error beside a score: all scores, or one error that names the items."""

from __future__ import annotations

from rm_server.errors import InternalError, InvalidRequest, RmError
from rm_server.scoring.scorer import ScoreAnswer

MAX_NAMED = 5
"""Failed items that the error names; of the others it gives the number."""


def all_values(answer: ScoreAnswer, name: str) -> list[float]:
    """The scores, in order. ``name``: what the caller calls its items, as in ``query[3]``.

    Where items failed, raises an error of one of them: of one that cannot be repeated with success, if there is any.
    """
    values = [item.value for item in answer.items if item.value is not None]
    if len(values) == len(answer.items):
        return values
    failed = [
        (index, item.error or InternalError("It came back with neither a score nor an error."))
        for index, item in enumerate(answer.items)
        if item.value is None
    ]
    raise _error_of(failed, name)


def _error_of(failed: list[tuple[int, RmError]], name: str) -> RmError:
    errors = [error for _, error in failed]
    worst = next((error for error in errors if isinstance(error, InvalidRequest)), errors[0])
    lines = [f"{name}[{index}]: {error.message}" for index, error in failed[:MAX_NAMED]]
    if len(failed) > MAX_NAMED:
        lines.append(f"… and {len(failed) - MAX_NAMED} more items")
    return type(worst)(" ".join(lines), retry_after_s=worst.retry_after_s)
