"""What each selector may have meant at a time, from a log of what operators changed. Pure but for the log's growth."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from rm_server.registry.records import Split
from rm_server.scoring.routing import DEFAULT_LABEL
from rm_server.scoring.selector import parse
from rm_server.scoring.split import choose_arm

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """The value became this at some moment between ``began`` and ``ended``, in seconds on the callers' clock."""

    began: float
    ended: float
    value: T


class Timeline(Generic[T]):
    """The changes of one thing, one after the other; a single thread makes them all."""

    def __init__(self, value: T) -> None:
        self._changes = [Change(-math.inf, -math.inf, value)]

    @property
    def last(self) -> T:
        """The value now."""
        return self._changes[-1].value

    def change(self, began: float, ended: float, value: T) -> None:
        """Notes a change that succeeded; one that was refused changes nothing."""
        self._changes.append(Change(began, ended, value))

    def possible(self, sent: float, received: float) -> set[T]:
        """All values that it may have had at some moment from ``sent`` to ``received``."""
        ends = [*(change.ended for change in self._changes[1:]), math.inf]
        return {
            change.value
            for change, end in zip(self._changes, ends, strict=True)
            if change.began <= received and sent <= end
        }


@dataclass
class Meaning:
    """All that selectors go by, over time: labels, splits, pins. What runs hold is known to whom it was given."""

    labels: dict[tuple[str, str], Timeline[int | None]] = field(default_factory=lambda: defaultdict(_nothing))
    splits: dict[str, Timeline[Split | None]] = field(default_factory=lambda: defaultdict(_nothing))
    pins: dict[tuple[str, str], Timeline[int | None]] = field(default_factory=lambda: defaultdict(_nothing))

    def possible(self, selector: str, run: str, sent: float, received: float, *, had_arm: str = "") -> set[int]:
        """The versions that may answer a call that was sent and answered then, by a run that holds none.

        ``had_arm``: the arm that the run was given before.
        """
        asked = parse(selector)
        if asked.version is not None:
            return {asked.version}
        model = asked.model
        if asked.label is not None or not run:
            return self._labelled(model, asked.label or DEFAULT_LABEL, sent, received)
        versions: set[int] = set()
        for pinned in self.pins[model, run].possible(sent, received):
            if pinned is not None:
                versions.add(pinned)
                continue
            for split in self.splits[model].possible(sent, received):
                # Without ramps the weights do not depend on the time.
                arm = None if split is None else choose_arm(split, run, 0.0, had=had_arm)
                versions |= self._labelled(model, DEFAULT_LABEL, sent, received) if arm is None else {arm.version}
        return versions

    def _labelled(self, model: str, label: str, sent: float, received: float) -> set[int]:
        return {version for version in self.labels[model, label].possible(sent, received) if version is not None}


def _nothing() -> Timeline[None]:
    return Timeline(None)
