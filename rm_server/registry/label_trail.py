"""Where a label has been, read from its history: what `rollback` goes back along."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

SET_LABEL = "set_label"
ROLLBACK = "rollback"
PROMOTE = "promote"


def label_trail(changes: Iterable[tuple[str, int]]) -> tuple[int, ...]:
    """The versions that lie behind a label, the present one last.

    ``changes``: (action, version), oldest first. Setting a label, by hand or by promotion, goes one step on, a rollback
    goes back. So a second rollback goes back further, and never returns to what the first one left.
    """
    trail: list[int] = []
    for action, version in changes:
        if action == ROLLBACK:
            while trail and trail[-1] != version:
                trail.pop()
        elif action in (SET_LABEL, PROMOTE) and trail[-1:] != [version]:
            trail.append(version)
    return tuple(trail)


def rollback_target(trail: Sequence[int], present: int, existing: Container[int]) -> int | None:
    """The last version before the present one that still exists; None: there is none."""
    return next((version for version in reversed(trail) if version != present and version in existing), None)
