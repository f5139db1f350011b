"""Evaluates a version on files of pairs and ratings: each text scored once, then figures and a verdict."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from rm_server.backends.items import Content
from rm_server.errors import RmError
from rm_server.training.data_files import BadData
from rm_server.training.evaluation import Evaluation, PairScores, RatedScores, evaluate
from rm_server.training.offline_scoring import Scored, ScoreTexts
from rm_server.training.preferences import Preference
from rm_server.training.ratings import RatedText
from rm_server.training.rows import key_of
from rm_server.training.verdict import Circumstances, Verdict, judge

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Subject:
    """What was evaluated, and on what. ``name``: a folder, or ``model@version``; ``digest``: the version's."""

    name: str
    digest: str
    data: str
    data_sha256: str


@dataclass(frozen=True, slots=True)
class Report:
    """An evaluation with everything that its page shows. ``pairs`` and ``rated`` are the scores behind the figures.

    ``margins``: score of the chosen minus score of the rejected, by `pair_key`, to six digits: so that two versions'
    evaluations can be compared pair by pair.
    """

    subject: Subject
    create_time: datetime
    evaluation: Evaluation
    circumstances: Circumstances
    verdict: Verdict
    pairs: PairScores
    rated: RatedScores | None
    margins: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """The figures and the pairs' margins as JSON, indented, newline at the end; None is null."""
        content: dict[str, Any] = {
            "model": self.subject.name,
            "digest": self.subject.digest,
            "data": {"path": self.subject.data, "sha256": self.subject.data_sha256, **asdict(self.circumstances)},
            "create_time": self.create_time.isoformat(timespec="seconds"),
            **asdict(self.evaluation),
            "verdict": asdict(self.verdict),
            "margins": dict(self.margins),
        }
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def assess(
    score: ScoreTexts,
    subject: Subject,
    pairs: Sequence[Preference],
    ratings: Sequence[RatedText] = (),
    trained_groups: Iterable[str] = (),
) -> Report:
    """Scores and evaluates. Pairs with a text that got no score are left out, counted, and said.

    ``trained_groups``: of the prompts that the version was trained on, as far as known.
    Raises BadData when nothing is left.
    """
    scores = _score_once(
        score,
        [
            *((pair.prompt, completion) for pair in pairs for completion in (pair.chosen, pair.rejected)),
            *((text.prompt, text.completion) for text in ratings),
        ],
    )
    scored_pairs, pair_scores = _pair_scores(pairs, scores)
    rated_scores = _rated_scores(ratings, scores) if ratings else None
    evaluation = evaluate(pair_scores, rated_scores)
    circumstances = Circumstances(
        num_unscored=len(pairs) - len(scored_pairs),
        truncated_share=sum(entry.truncated for entry in scores.values()) / len(scores),
        num_trained_prompts=len({pair.group for pair in pairs}.intersection(trained_groups)),
    )
    return Report(
        subject=subject,
        create_time=datetime.now(UTC),
        evaluation=evaluation,
        circumstances=circumstances,
        verdict=judge(evaluation, circumstances),
        pairs=pair_scores,
        rated=rated_scores,
        margins={
            pair_key(pair): float(f"{margin:.6g}")
            for pair, margin in zip(scored_pairs, pair_scores.margins.tolist(), strict=True)
        },
    )


def pair_key(pair: Preference) -> str:
    """``PROMPT/PAIR``: the same in every evaluation on this pair, and tells nothing of its text."""
    content = key_of(pair.prompt) + key_of(pair.chosen) + key_of(pair.rejected)
    return f"{key_of(pair.group)[:8]}/{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _score_once(score: ScoreTexts, texts: Iterable[tuple[Content, Content]]) -> dict[str, Scored]:
    different = {_key(prompt, completion): (prompt, completion) for prompt, completion in texts}
    return dict(zip(different, score(list(different.values())), strict=True))


def _key(prompt: Content, completion: Content) -> str:
    return key_of(prompt) + key_of(completion)


def _pair_scores(pairs: Sequence[Preference], scores: dict[str, Scored]) -> tuple[list[Preference], PairScores]:
    kept, chosen, rejected = [], [], []
    reasons: list[RmError] = []
    for pair in pairs:
        one, other = scores[_key(pair.prompt, pair.chosen)].score, scores[_key(pair.prompt, pair.rejected)].score
        if isinstance(one, RmError) or isinstance(other, RmError):
            reasons += [value for value in (one, other) if isinstance(value, RmError)]
            continue
        kept.append(pair)
        chosen.append(one)
        rejected.append(other)
    if reasons:
        logger.warning("Left out %d pairs without scores, the first: %s", len(pairs) - len(kept), reasons[0])
    if not kept:
        raise BadData(f"None of the {len(pairs)} pairs could be scored, the first: {reasons[0].message}")
    # A message may say nothing; a length of 0 would have no logarithm.
    lengths = np.maximum(np.array([pair.lengths for pair in kept], np.float64), 1)
    return kept, PairScores(
        chosen=np.array(chosen),
        rejected=np.array(rejected),
        chosen_lengths=lengths[:, 0],
        rejected_lengths=lengths[:, 1],
        clusters=np.array([pair.group for pair in kept]),
        subsets=[pair.subset or "" for pair in kept],
    )


def _rated_scores(ratings: Sequence[RatedText], scores: dict[str, Scored]) -> RatedScores | None:
    values = [scores[_key(text.prompt, text.completion)].score for text in ratings]
    kept = [(text, value) for text, value in zip(ratings, values, strict=True) if not isinstance(value, RmError)]
    if len(kept) < len(ratings):
        logger.warning("Left out %d of %d rated texts, which got no score.", len(ratings) - len(kept), len(ratings))
    if not kept:
        return None
    return RatedScores(
        scores=np.array([value for _, value in kept]),
        ratings=np.array([text.rating for text, _ in kept]),
        clusters=np.array([text.group for text, _ in kept]),
    )
