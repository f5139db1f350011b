"""From files to a report: each text scored once, what has no score left out and said."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence

import numpy as np
import pytest

from rm_server.backends.items import ChatMessage, Content
from rm_server.errors import ItemTooLong
from rm_server.training.assessment import Subject, assess
from rm_server.training.data_files import BadData
from rm_server.training.offline_scoring import Scored
from rm_server.training.preferences import Preference
from rm_server.training.ratings import RatedText

SUBJECT = Subject("m@1", "d" * 64, "pairs.jsonl", "f" * 64)
PAIRS = [
    Preference(f"p{i // 3}", "good" * (1 + i % 3), "bad" * (1 + (i * 7) % 4), f"g{i // 3}", ("a", "b")[i % 2])
    for i in range(30)
]
RATINGS = [RatedText(f"p{i // 3}", "good" * (1 + i % 3), float(i % 3), f"g{i // 3}") for i in range(30)]


class LengthScorer:
    """Scores by length, and remembers what it was asked."""

    def __init__(self, longest: int = 99) -> None:
        self.longest = longest
        self.asked: list[tuple[Content, Content]] = []

    def __call__(self, texts: Sequence[tuple[Content, Content]]) -> list[Scored]:
        self.asked += texts
        return [
            Scored(float(len(c)), truncated=len(c) > 8) if len(c) <= self.longest else Scored(ItemTooLong("too long"))
            for _, c in texts
        ]


def test_each_text_is_scored_once() -> None:
    score = LengthScorer()
    report = assess(score, SUBJECT, PAIRS, RATINGS)
    assert len(score.asked) == len(set(score.asked))
    expected = sum((len(p.chosen) > len(p.rejected)) + (len(p.chosen) == len(p.rejected)) / 2 for p in PAIRS) / 30
    assert report.evaluation.accuracy == pytest.approx(expected)
    assert report.evaluation.accuracy == report.evaluation.longer_wins_accuracy
    assert report.evaluation.num_prompts == 10
    assert report.evaluation.ratings is not None
    assert report.evaluation.ratings.within_prompts == pytest.approx(1)
    assert report.evaluation.subsets.keys() == {"a", "b"}
    assert 0 < report.circumstances.truncated_share < 1


def test_pairs_without_a_score_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        report = assess(LengthScorer(longest=8), SUBJECT, PAIRS, RATINGS)
    left = [p for p in PAIRS if max(len(p.chosen), len(p.rejected)) <= 8]
    assert 0 < len(left) < 30
    assert report.evaluation.num_pairs == len(left)
    assert report.circumstances.num_unscored == 30 - len(left)
    assert any(f"{30 - len(left)} pairs could not be scored" in caution for caution in report.verdict.cautions)
    assert "too long" in caplog.text


def test_rated_texts_without_a_score_are_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        report = assess(LengthScorer(), SUBJECT, PAIRS, [*RATINGS, RatedText("p0", "x" * 200, 5.0, "g0")])
    assert report.evaluation.ratings is not None
    assert report.evaluation.ratings.num_texts == len(RATINGS)
    assert "Left out 1 of 31 rated texts" in caplog.text
    unscored = [RatedText("p0", "x" * 200, 5.0, "g0")]
    assert assess(LengthScorer(), SUBJECT, PAIRS, unscored).evaluation.ratings is None


def test_a_message_that_says_nothing_has_no_endless_length_ratio() -> None:
    silent = Preference("p", (ChatMessage("assistant", ""),), (ChatMessage("assistant", "so"),), "g")
    report = assess(LengthScorer(), SUBJECT, [*PAIRS, silent])
    assert np.isfinite(report.pairs.log_length_ratios).all()


def test_nothing_scored_is_an_error() -> None:
    with pytest.raises(BadData, match="None of the 30 pairs could be scored, the first: too long"):
        assess(LengthScorer(longest=0), SUBJECT, PAIRS)


def test_prompts_that_were_trained_on_are_counted() -> None:
    report = assess(LengthScorer(), SUBJECT, PAIRS, trained_groups=["g0", "g3", "elsewhere"])
    assert report.circumstances.num_trained_prompts == 2


def test_the_json_has_the_names_that_others_read() -> None:
    content = json.loads(assess(LengthScorer(), SUBJECT, PAIRS).to_json())
    assert (content["model"], content["digest"]) == ("m@1", "d" * 64)
    assert content["data"]["sha256"] == "f" * 64
    assert content["ratings"] is None
    assert len(content["accuracy_interval"]) == 2
    assert {"coefficient", "interval"} <= content["beyond_length"].keys()
    assert isinstance(content["length_matched_accuracy"], float)
    assert content["verdict"]["level"] in ("good", "unclear", "bad")
    assert "chosen" in content["distributions"]
