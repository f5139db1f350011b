"""What runs have logged, read back: steps, samples, evaluations; and the last evaluations of several side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ppo_client.ppo.errors import DataError
from ppo_client.ppo.evaluation_facts import EvaluationFacts
from ppo_client.ppo.rows import read_rows


def read_logs(run: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of metrics.jsonl and samples.jsonl; the latter may be missing."""
    rows = _rows(run / "metrics.jsonl")
    if not rows:
        raise DataError(f"{run / 'metrics.jsonl'} is empty: the run has made no step yet")
    samples = run / "samples.jsonl"
    return rows, _rows(samples) if samples.exists() else []


def read_evaluations(run: Path) -> list[dict[str, Any]]:
    """The rows of evaluations.jsonl; empty where the run was not evaluated."""
    path = run / "evaluations.jsonl"
    return _rows(path) if path.exists() else []


def _rows(path: Path) -> list[dict[str, Any]]:
    """But for a last one that is being written, or was cut short by a full disk or a kill."""
    rows = []
    try:
        for _, row in read_rows(path):
            rows.append(row)
    except DataError:
        if not path.exists() or path.read_bytes().endswith(b"\n"):
            raise
    return rows


def comparison(places: Sequence[Path]) -> list[dict[str, Any]]:
    """One row for each run (its last evaluation) or file of `ppo-client evaluate --json`. Raises DataError."""
    names = [name_of(place) for place in places]
    named = [name if names.count(name) == 1 else str(place) for name, place in zip(names, places, strict=True)]
    return [{"name": name, **_evaluation_of(place)} for name, place in zip(named, places, strict=True)]


def name_of(place: Path) -> str:
    """What a run, or an evaluation's file, is called where several stand side by side."""
    return place.resolve().name if place.is_dir() else place.stem


def _evaluation_of(place: Path) -> dict[str, Any]:
    if place.is_dir():
        if not (evaluations := read_evaluations(place)):
            raise DataError(
                f"{place} was never evaluated, so there is nothing to compare: evaluate its policy with "
                "`ppo-client evaluate --json`, and name that file"
            )
        return evaluations[-1]
    try:
        found: Any = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{place} cannot be read: {error}") from error
    if not isinstance(found, dict) or not {item.name for item in fields(EvaluationFacts)} <= found.keys():
        raise DataError(f"{place} is not what `ppo-client evaluate --json` writes")
    return found
