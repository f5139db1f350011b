"""What a run's logs say in numbers, and the signs that a policy games its reward instead of getting better."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from ppo_client.ppo.conditions import made_alike
from ppo_client.ppo.text_facts import correlation, distinct_share, repeated_share

Row = Mapping[str, Any]

# Shares that are compared: the first and the last tenth of a run.
_ENDS = 0.1


@dataclass(frozen=True, slots=True)
class RunFacts:
    """`…_first` and `…_last` are means over the first and the last tenth of the steps, at least one."""

    num_steps: int
    episodes: int
    score_first: float
    score_last: float
    score_std_first: float
    """Mean of the steps' standard deviations over episodes: a rise is large or small against this"""
    kl_last: float
    entropy_first: float
    entropy_last: float
    response_tokens_first: float
    response_tokens_last: float
    eos_rate_last: float
    versions: list[str]
    """In the order they scored; of several models those of one step together: `a@1 + b@2`"""
    switch_steps: list[int]
    """Steps in which another version answered first"""
    incomparable_steps: list[int]
    """Those of them from which on scores are of another scale, for they are raw"""
    seconds: float
    reward_wait_share: float
    """Of the wall time of the steps"""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Sign:
    """Something to be sceptical of."""

    name: str
    first: float | None
    last: float | None
    meaning: str


def run_facts(rows: Sequence[Row]) -> RunFacts:
    """`rows`: of metrics.jsonl, at least one."""
    size = max(1, round(len(rows) * _ENDS))
    first, last = rows[:size], rows[-size:]
    seconds = sum(row["step_s"] for row in rows)
    return RunFacts(
        num_steps=len(rows),
        episodes=rows[-1]["episodes"],
        score_first=_mean(first, "score_mean"),
        score_last=_mean(last, "score_mean"),
        score_std_first=_mean(first, "score_std"),
        kl_last=_mean(last, "kl"),
        entropy_first=_mean(first, "entropy"),
        entropy_last=_mean(last, "entropy"),
        response_tokens_first=_mean(first, "response_tokens_mean"),
        response_tokens_last=_mean(last, "response_tokens_mean"),
        eos_rate_last=_mean(last, "eos_rate"),
        versions=list(dict.fromkeys(map(_scorers, rows))),
        switch_steps=switch_steps(rows),
        incomparable_steps=[row["step"] for row in rows if any(not e["is_calibrated"] for e in _version_changes(row))],
        seconds=seconds,
        reward_wait_share=sum(row["reward_wait_s"] for row in rows) / seconds if seconds else 0.0,
    )


def switch_steps(rows: Sequence[Row]) -> list[int]:
    """The steps in which another version began to score."""
    return [row["step"] for row in rows if _version_changes(row)]


def _scorers(row: Row) -> str:
    """What scored the step: one version, or one of each model."""
    of_each = [version.partition(" ")[0] for version in row.get("reward_versions", ())]  # a digest follows the name
    return " + ".join(of_each) or f"{row['reward_model']}@{row['reward_version']}"


def _version_changes(row: Row) -> list[Row]:
    return [event for event in row.get("events", ()) if event["kind"] == "version_changed"]


def signs(samples: Sequence[Row]) -> list[Sign]:
    """`samples`: of samples.jsonl; its earlier and its later half are compared."""
    half = len(samples) // 2
    first, last = samples[:half], samples[len(samples) - half :]

    def sign(name: str, measure: Callable[[Sequence[Row]], float | None], meaning: str) -> Sign:
        return Sign(name, measure(first), measure(last), meaning)

    return [
        sign(
            "score and length go together (correlation)",
            _length_correlation,
            "near 1: the reward may be paid for length",
        ),
        sign(
            "distinct word pairs (share of all)",
            lambda rows: distinct_share([row["completion"] for row in rows], 2),
            "falling: the texts grow alike",
        ),
        sign(
            "repeated word triples within a text (share)",
            lambda rows: repeated_share([row["completion"] for row in rows], 3),
            "rising: the texts go in circles",
        ),
    ]


def evaluation_signs(evaluations: Sequence[Row]) -> list[Sign]:
    """`evaluations`: of evaluations.jsonl; the last is held against the first made as it was; of none, no signs."""
    if not evaluations:
        return []
    first, last = made_alike(evaluations)[0], evaluations[-1]

    def rise(row: Row, name: str) -> float:
        found: float = row[f"{name}_mean"] - row[f"reference_{name}_mean"]
        return found

    found = [
        Sign(
            "held-out: score and length go together (correlation)",
            first["score_length_correlation"],
            last["score_length_correlation"],
            "near 1: the reward may be paid for length",
        ),
        Sign(
            "held-out: repeated word triples within a text (share)",
            first["repeated_3"],
            last["repeated_3"],
            "rising: the texts go in circles",
        ),
    ]
    if first["judges"] == first["versions"]:
        return found
    return [
        *found,
        Sign(
            "held-out: training reward above the reference's",
            rise(first, "score"),
            rise(last, "score"),
            "what PPO maximises",
        ),
        Sign(
            "held-out: second opinion above the reference's",
            rise(first, "judge"),
            rise(last, "judge"),
            "falling while the line above rises: over-optimisation",
        ),
        Sign(
            "held-out: training reward and second opinion agree (correlation)",
            first["score_judge_correlation"],
            last["score_judge_correlation"],
            "falling: what is learnt is this reward model's own taste",
        ),
    ]


def _length_correlation(rows: Sequence[Row]) -> float | None:
    return correlation([len(row["completion"].split()) for row in rows], [row["score"] for row in rows])


def _mean(rows: Sequence[Row], name: str) -> float:
    return fmean(row[name] for row in rows)
