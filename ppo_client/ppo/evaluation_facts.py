"""What an evaluation found, in numbers: policy beside reference, by the training reward and a second opinion."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, pstdev
from typing import Any

from ppo_client.ppo.conditions import Conditions
from ppo_client.ppo.config import EvaluationConfig
from ppo_client.ppo.scores.versions import RewardVersion
from ppo_client.ppo.text_facts import WinRate, correlation, distinct_share, repeated_share


@dataclass(frozen=True, slots=True)
class Written:
    """One response, and what it got."""

    completion: str
    num_tokens: int
    has_eos: bool
    score: float
    """By the training reward"""
    judged: float
    """By the second opinion; the score where there is none"""


@dataclass(frozen=True, slots=True)
class Pair:
    """What policy and reference wrote to one prompt, by the same random numbers."""

    row: int
    """Of the prompts"""
    prompt: str
    policy: Written
    reference: Written
    kl: float
    """Of the policy from the reference: log-ratio of the policy's response, nats"""
    versions: tuple[tuple[RewardVersion, ...], ...]
    """What gave each response its score, by model; a response without text is in neither of these"""
    judges: tuple[tuple[RewardVersion, ...], ...]


@dataclass(frozen=True, slots=True)
class EvaluationFacts:
    """Means are over responses; `reference_…` are of the reference's."""

    count: int
    score_mean: float
    score_std: float
    reference_score_mean: float
    judge_mean: float
    reference_judge_mean: float
    win_rate: float
    """Of the policy against the reference, by the second opinion"""
    win_rate_low: float
    win_rate_high: float
    """Bounds of the 95 % interval"""
    wins: int
    ties: int
    losses: int
    kl: float
    """Nats per episode"""
    response_tokens_mean: float
    reference_response_tokens_mean: float
    missing_eos_rate: float
    distinct_1: float | None
    distinct_2: float | None
    """Different words, and pairs of words, over all of them"""
    repeated_3: float | None
    """Word triples that occurred before in the same text, over all of them"""
    score_length_correlation: float | None
    score_judge_correlation: float | None
    """Over the policy's responses; 1 where there is no second opinion"""
    versions: list[str]
    judges: list[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluation_facts(pairs: Sequence[Pair]) -> EvaluationFacts:
    """`pairs`: at least one."""
    ours, theirs = [pair.policy for pair in pairs], [pair.reference for pair in pairs]
    scores, texts = [one.score for one in ours], [one.completion for one in ours]
    win_rate = WinRate.of([one.judged for one in ours], [one.judged for one in theirs])
    low, high = win_rate.interval
    return EvaluationFacts(
        count=len(pairs),
        score_mean=fmean(scores),
        score_std=pstdev(scores),
        reference_score_mean=fmean(one.score for one in theirs),
        judge_mean=fmean(one.judged for one in ours),
        reference_judge_mean=fmean(one.judged for one in theirs),
        win_rate=win_rate.value,
        win_rate_low=low,
        win_rate_high=high,
        wins=win_rate.wins,
        ties=win_rate.ties,
        losses=win_rate.losses,
        kl=fmean(pair.kl for pair in pairs),
        response_tokens_mean=fmean(one.num_tokens for one in ours),
        reference_response_tokens_mean=fmean(one.num_tokens for one in theirs),
        missing_eos_rate=fmean(not one.has_eos for one in ours),
        distinct_1=distinct_share(texts, 1),
        distinct_2=distinct_share(texts, 2),
        repeated_3=repeated_share(texts, 3),
        score_length_correlation=correlation([one.num_tokens for one in ours], scores),
        score_judge_correlation=correlation(scores, [one.judged for one in ours]),
        versions=_names(pair.versions for pair in pairs),
        judges=_names(pair.judges for pair in pairs),
    )


def _names(given: Iterable[Iterable[Iterable[RewardVersion]]]) -> list[str]:
    return sorted({str(version) for of_pair in given for of_response in of_pair for version in of_response})


def measure_of(facts: EvaluationFacts, conditions: Conditions, config: EvaluationConfig) -> str:
    """What evaluations must have in common for `config.best_by` to tell which is better; empty: nothing was scored.

    Raw scores of two versions are no more comparable than those of two models; calibrated ones are, of one model.
    """
    names = facts.versions if config.best_by == "score_mean" else facts.judges
    is_second_opinion = bool(config.model) and config.best_by != "score_mean"
    if not is_second_opinion and "raw" not in conditions.scores:
        names = sorted({name.partition("@")[0] for name in names})
    return f"{config.best_by} of {', '.join(names)} on prompts {conditions.prompts}" if names else ""


def text_rows(pairs: Sequence[Pair], num_rows: int) -> list[dict[str, Any]]:
    """The first pairs, for people."""
    return [
        {
            "prompt": pair.prompt,
            "policy": asdict(pair.policy),
            "reference": asdict(pair.reference),
        }
        for pair in pairs[:num_rows]
    ]
