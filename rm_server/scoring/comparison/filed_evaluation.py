"""What promotion reads from the evaluations filed with a version: anybody's JSON, so nothing is taken for granted."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rm_server.registry.records import EvaluationRecord

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class BeyondLength:
    """What a score knows of people's choice beyond length. ``coefficient`` is None, for example, where score and length
    together predict every choice (``is_separated``): the test, ``t`` and ``p_value``, speaks then.
    """

    coefficient: float | None = None
    interval: Interval | None = None
    is_separated: bool = False
    t: float | None = None
    p_value: float | None = None


@dataclass(frozen=True, slots=True)
class FiledEvaluation:
    """One evaluation. ``margins``: score of the chosen minus of the rejected completion, by ``PROMPT/PAIR``.

    ``level``: of the verdict, "good", "unclear" or "bad". ``accuracy_interval``: at 95 %.
    ``num_trained_prompts``: evaluated prompts that the version was trained on, as far as known.
    """

    name: str
    digest: str
    margins: Mapping[str, float] = field(default_factory=dict)
    level: str = ""
    headline: str = ""
    accuracy: float | None = None
    accuracy_interval: Interval | None = None
    num_trained_prompts: int = 0
    beyond_length: BeyondLength = BeyondLength()
    length_correlation: float | None = None

    @property
    def is_constant(self) -> bool:
        """Whether no pair gets two different scores."""
        return bool(self.margins) and not any(self.margins.values())


def read_filed(record: EvaluationRecord) -> FiledEvaluation:
    """What is missing, or is not what it should be, stays at its default."""
    report = _mapping(json.loads(record.report_json))
    verdict, beyond = _mapping(report.get("verdict")), _mapping(report.get("beyond_length"))
    margins = {
        key: number for key, value in _mapping(report.get("margins")).items() if (number := _number(value)) is not None
    }
    return FiledEvaluation(
        name=record.name,
        digest=_text(report.get("digest")),
        margins=margins,
        level=_text(verdict.get("level")),
        headline=_text(verdict.get("headline")),
        accuracy=_number(report.get("accuracy")),
        accuracy_interval=_interval(report.get("accuracy_interval")),
        num_trained_prompts=int(_number(_mapping(report.get("data")).get("num_trained_prompts")) or 0),
        beyond_length=BeyondLength(
            coefficient=_number(beyond.get("coefficient")),
            interval=_interval(beyond.get("interval")),
            is_separated=beyond.get("is_separated") is True,
            t=_number(beyond.get("t")),
            p_value=_number(beyond.get("p_value")),
        ),
        length_correlation=_number(report.get("length_correlation")),
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) <= sys.float_info.max else None


def _interval(value: Any) -> Interval | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    low, high = _number(value[0]), _number(value[1])
    return None if low is None or high is None else (low, high)
