"""Under what an evaluation was made: what must be alike where two of them are set side by side."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from ppo_client.ppo.config import RewardModelConfig
from ppo_client.ppo.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Conditions:
    """What decides, beside the policies and the versions that score, what an evaluation finds."""

    prompts: str
    """Of SHA-256, over what the policy reads and what the reward model is told of the prompts"""
    min_response_tokens: int
    max_response_tokens: int
    temperature: float
    scores: str
    """How the training reward's came about: `raw` or `calibrated`; of several models with their weights"""
    truncation: str | None
    """Of what is too long for a reward model; None: each version's own rule"""
    empty_score: float | None
    seed: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def digest_of(prompts: Sequence[Prompt]) -> str:
    told = json.dumps([[prompt.token_ids, prompt.content] for prompt in prompts])
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def scale_of(parts: Sequence[RewardModelConfig]) -> str:
    names = ["calibrated" if part.calibrated else "raw" for part in parts]
    if len(parts) == 1 and parts[0].weight == 1:
        return names[0]
    return " + ".join(f"{part.weight:g} × {name}" for part, name in zip(parts, names, strict=True))


_LABELS = {
    "prompts": "prompts, or what the reward model is told of them",
    "min_response_tokens": "fewest tokens",
    "max_response_tokens": "most tokens",
    "temperature": "temperature",
    "scores": "scores",
    "truncation": "truncation",
    "empty_score": "score of an empty response",
    "seed": "seed",
}


def differences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """In what the rows of a comparison are not like for like, for people; empty where they are.

    ``rows``: evaluations (EvaluationFacts, conditions) with a name each.
    """
    found = [f"{row['name']} does not say under what conditions it was made" for row in rows if "conditions" not in row]
    telling = [row for row in rows if "conditions" in row]
    for name, label in _LABELS.items():
        found += _unlike(label, [(row["name"], row["conditions"].get(name)) for row in telling])
    found += _unlike("scored by", [(row["name"], ", ".join(row["versions"])) for row in rows])
    found += _unlike("judged by", [(row["name"], ", ".join(row["judges"])) for row in rows])
    return found


def made_alike(evaluations: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of a run that can be set beside its last one."""
    return [row for row in evaluations if _way(row) == _way(evaluations[-1])]


def changes_over(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """In what a run's evaluations, in the order of their steps, are not like for like: by those that began it."""
    began = [*evaluations[:1], *(row for before, row in pairwise(evaluations) if _way(row) != _way(before))]
    return differences([{**row, "name": f"step {row['step']}"} for row in began]) if len(began) > 1 else []


def _way(row: Mapping[str, Any]) -> list[Any]:
    return [row.get("conditions"), row["versions"], row["judges"]]


def _unlike(label: str, values: Sequence[tuple[str, Any]]) -> list[str]:
    if all(value == values[0][1] for _, value in values):
        return []
    return [f"{label}: {', '.join(f'{value} ({name})' for name, value in values)}"]
