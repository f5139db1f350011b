"""The gate's word, case by case; the evaluations are made by the real code, of scorers of known skill."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from rm_server.backends.items import Content
from rm_server.errors import InvalidRequest
from rm_server.registry.records import EvaluationRecord
from rm_server.scoring.comparison.agreement import Agreement, agreement
from rm_server.scoring.comparison.filed_evaluation import BeyondLength, FiledEvaluation, read_filed
from rm_server.scoring.comparison.promotion import (
    MIN_PROMPTS,
    MIN_SHADOW_PAIRS,
    Candidate,
    Decision,
    Evidence,
    check_reason,
    decide,
    refusal,
    spoken,
)
from rm_server.training.assessment import Subject, assess
from rm_server.training.offline_scoring import Scored, ScoreTexts
from rm_server.training.preferences import Preference

NEW, PRESENT = "b" * 64, "a" * 64


def pairs(num_prompts: int, first: int = 0) -> list[Preference]:
    """Three a prompt; a text's quality is written in it, and people choose the better one."""
    rng = np.random.default_rng(first)
    made = []
    for prompt in range(first, first + num_prompts):
        for _ in range(3):
            worse, better = sorted(rng.uniform(size=2))
            fill = ["word " * int(n) for n in rng.integers(1, 9, size=2)]
            made.append(Preference(f"p{prompt}", f"{fill[0]}{better:.4f}", f"{fill[1]}{worse:.4f}", f"g{prompt}"))
    return made


def scorer(skill: float, seed: int) -> ScoreTexts:
    """The quality, times ``skill``, and noise of the text's own."""

    def score(texts: Sequence[tuple[Content, Content]]) -> list[Scored]:
        return [Scored(skill * float(str(c).split()[-1]) + _noise(f"{seed} {p} {c}")) for p, c in texts]

    return score


def _noise(text: str) -> float:
    return float(np.random.default_rng(zlib.crc32(text.encode())).normal())


def constant(texts: Sequence[tuple[Content, Content]]) -> list[Scored]:
    return [Scored(0.5) for _ in texts]


def evaluation(
    score: ScoreTexts, data: Sequence[Preference], digest: str, *, name: str = "held_out", trained: Sequence[str] = ()
) -> FiledEvaluation:
    report = assess(score, Subject("m@1", digest, "pairs.jsonl", "f" * 64), data, trained_groups=trained)
    return read_filed(EvaluationRecord(name, report.to_json(), datetime.now(UTC)))


DATA = pairs(100)
POOR = evaluation(scorer(1.0, 1), DATA, PRESENT)
SHUFFLED = evaluation(scorer(0.0, 2), DATA, NEW)
SKILLED = evaluation(scorer(4.0, 3), DATA, NEW)


def gate(*evaluations: FiledEvaluation, present: Candidate | None = None, shadow: Agreement | None = None) -> Decision:
    known = Candidate(1, PRESENT, (POOR,)) if present is None else present
    return decide(Evidence("m", "stable", Candidate(2, NEW, evaluations), known, shadow))


def first_version(*evaluations: FiledEvaluation) -> Decision:
    return decide(Evidence("m", "stable", Candidate(2, NEW, evaluations)))


def test_a_better_version_is_allowed_and_that_is_said() -> None:
    decision = gate(SKILLED)
    assert decision.is_allowed
    assert any("better beyond chance" in note for note in decision.notes)
    assert spoken(decision) == "the gate allowed it"


def test_a_version_that_learned_nothing_is_refused_with_figures() -> None:
    decision = gate(SHUFFLED, present=Candidate(1, PRESENT, (replace(SKILLED, digest=PRESENT),)))
    assert not decision.is_allowed
    assert "worse beyond chance" in decision.objections[0]
    assert "300 pairs of 100 prompts" in decision.objections[0]
    assert decision.findings[0] == f"Objection: {decision.objections[0]}"
    assert not any(finding.startswith("Objection") for finding in decision.findings[1:])


def test_no_worse_beyond_chance_is_allowed() -> None:
    decision = gate(evaluation(scorer(1.0, 5), DATA, NEW))
    assert decision.is_allowed
    assert any("no difference beyond chance" in note for note in decision.notes)


def test_each_evaluation_is_compared_and_one_that_is_worse_is_enough() -> None:
    other = pairs(100, first=500)
    present = Candidate(1, PRESENT, (POOR, evaluation(scorer(4.0, 1), other, PRESENT, name="code")))
    new = (SKILLED, evaluation(scorer(0.0, 3), other, NEW, name="code"))
    decision = gate(*new, present=present)
    assert len(decision.objections) == 1
    assert "'code'" in decision.objections[0]
    assert any("'held_out'" in note and "better" in note for note in decision.notes)


def test_many_evaluations_do_not_make_chance_an_objection() -> None:
    data = [f"prompt{i}/pair{i}" for i in range(20)]
    new = {key: -1.0 if i < 15 else 1.0 for i, key in enumerate(data)}  # 15 lost, 5 won: p = 0.041
    opposite = {key: -margin for key, margin in new.items()}
    present = Candidate(1, PRESENT, (FiledEvaluation("x", PRESENT, opposite),))
    assert not gate(FiledEvaluation("x", NEW, new), present=present).is_allowed
    assert gate(FiledEvaluation("x", NEW, new), FiledEvaluation("y", NEW, new), present=present).is_allowed


@pytest.mark.parametrize(
    "useless",
    [
        (),
        (replace(SKILLED, digest="c" * 64),),
        (evaluation(scorer(4.0, 3), DATA, NEW, trained=["g7"]),),
    ],
    ids=["none", "of another digest", "on prompts that it was trained on"],
)
def test_without_an_evaluation_that_counts_it_is_refused(useless: tuple[FiledEvaluation, ...]) -> None:
    for decision in (gate(*useless), first_version(*useless)):
        assert "No evaluation of version 2 counts" in decision.objections[0]
        assert len(decision.notes) >= len(useless)


def test_evaluations_without_common_pairs_show_nothing() -> None:
    decision = gate(evaluation(scorer(4.0, 3), pairs(100, first=900), NEW))
    assert "not been evaluated on enough of the same pairs" in decision.objections[0]
    without_pairs = replace(SKILLED, margins={})
    assert not gate(without_pairs).is_allowed


def test_a_few_common_prompts_show_nothing_either() -> None:
    enough, too_few = pairs(MIN_PROMPTS), pairs(MIN_PROMPTS - 1)
    assert gate(evaluation(scorer(4.0, 3), too_few, NEW), present=_evaluated_on(too_few)).objections
    assert not gate(evaluation(scorer(4.0, 3), enough, NEW), present=_evaluated_on(enough)).objections


def _evaluated_on(data: Sequence[Preference]) -> Candidate:
    return Candidate(1, PRESENT, (evaluation(scorer(4.0, 3), data, PRESENT),))


def test_constant_scores_are_refused() -> None:
    decision = gate(evaluation(constant, DATA, NEW))
    assert any("the same score" in objection for objection in decision.objections)
    assert first_version(evaluation(constant, DATA, NEW)).objections


def test_scores_that_go_against_people_are_refused_by_their_verdict() -> None:
    upside_down = evaluation(scorer(-4.0, 3), DATA, NEW)
    assert upside_down.level == "bad"
    assert any("verdict" in objection for objection in gate(upside_down).objections)
    assert any("verdict" in objection for objection in first_version(upside_down).objections)


def test_the_first_version_has_to_be_better_than_chance() -> None:
    assert first_version(SKILLED).is_allowed
    assert "more often than chance" in first_version(SHUFFLED).objections[0]


def test_what_the_label_names_already_is_no_question() -> None:
    decision = decide(Evidence("m", "stable", Candidate(2, NEW), Candidate(2, NEW)))
    assert decision.is_allowed
    assert "already" in decision.notes[0]


def test_a_present_version_that_saw_the_prompts_is_noted() -> None:
    saw = evaluation(scorer(1.0, 1), DATA, PRESENT, trained=["g7"])
    assert any("better than it is" in note for note in gate(SKILLED, present=Candidate(1, PRESENT, (saw,))).notes)


def test_a_calibration_that_would_be_missed_is_noted() -> None:
    decision = gate(SKILLED, present=Candidate(1, PRESENT, (POOR,), is_calibrated=True))
    assert decision.is_allowed
    assert any("calibrated scores by the label will be refused" in note for note in decision.notes)


# --- length ---


def test_where_no_coefficient_exists_the_test_speaks() -> None:
    perfect = evaluation(lambda texts: [Scored(float(str(c).split()[-1])) for _, c in texts], DATA, NEW)
    assert (perfect.beyond_length.coefficient, perfect.beyond_length.is_separated) == (None, True)
    (note,) = [note for note in gate(perfect).notes if "beyond length" in note]
    assert "together predict every choice" in note
    assert "for the choice" in note


def test_length_is_told_where_scores_follow_it() -> None:
    follows = replace(SKILLED, length_correlation=0.8, beyond_length=BeyondLength(0.5, (0.1, 0.9)))
    (note,) = [note for note in gate(follows).notes if "beyond length" in note]
    assert "0.50 [0.10, 0.90]" in note
    assert "rise with longer texts (correlation 0.80)" in note


# --- the shadow ---


def shadowed(correlation: float, num_groups: int, size: int = 4) -> Agreement:
    rng = np.random.default_rng(0)
    x, other = rng.normal(size=(2, num_groups * size))
    y = correlation * x + np.sqrt(1 - correlation**2) * other
    return agreement(x, y, [str(i // size) for i in range(len(x))])


def test_a_shadow_that_agrees_is_reported() -> None:
    decision = gate(SKILLED, shadow=shadowed(0.95, 200))
    assert decision.is_allowed
    assert any("rank correlation 0.9" in note for note in decision.notes)


def test_a_shadow_that_ranks_by_something_else_is_objected_to() -> None:
    decision = gate(SKILLED, shadow=shadowed(0.1, 200))
    assert len(decision.objections) == 1
    assert "ranks live traffic by something else" in decision.objections[0]


@pytest.mark.parametrize("size", [2, 4, 64])
def test_a_shadow_that_agrees_well_enough_does_so_in_groups_of_any_size(size: int) -> None:
    assert gate(SKILLED, shadow=shadowed(0.7, 400, size)).is_allowed


def test_a_shadow_that_agrees_on_prompts_alone_is_objected_to() -> None:
    rng = np.random.default_rng(0)
    prompts = 3 * np.repeat(rng.normal(size=200), 4)
    x, y = prompts + rng.normal(size=(2, 800))
    decision = gate(SKILLED, shadow=agreement(x, y, [str(i // 4) for i in range(800)]))
    assert len(decision.objections) == 1
    assert "ranks completions of one prompt by something else" in decision.objections[0]
    assert "live traffic by something else" not in decision.objections[0]


def test_a_shadow_of_few_pairs_is_only_mentioned() -> None:
    few = shadowed(0.1, MIN_SHADOW_PAIRS // 4 - 1)
    decision = gate(SKILLED, shadow=few)
    assert decision.is_allowed
    assert any("Too few to object to" in note for note in decision.notes)


def test_a_constant_shadow_is_objected_to() -> None:
    x = np.random.default_rng(0).normal(size=800)
    decision = gate(SKILLED, shadow=agreement(x, np.ones(800), [str(i // 4) for i in range(800)]))
    assert "the same score" in decision.objections[0]


def test_without_a_shadow_that_is_said() -> None:
    assert any("has not shadowed" in note for note in gate(SKILLED).notes)


# --- around it ---


def test_whoever_forces_says_why() -> None:
    for reason in ("", "  "):
        with pytest.raises(InvalidRequest, match="reason"):
            check_reason(True, reason)
    check_reason(True, "people asked for it")
    check_reason(False, "")


def test_the_refusal_and_the_history_name_every_objection() -> None:
    evidence = Evidence("m", "stable", Candidate(2, NEW, (SHUFFLED,)), Candidate(1, PRESENT, ()), shadowed(0.1, 200))
    decision = decide(evidence)
    assert len(decision.objections) == 2
    for objection in decision.objections:
        assert objection in refusal(evidence, decision).message
        assert objection in spoken(decision)


@pytest.mark.parametrize(
    "report",
    [
        {},
        {"margins": [1, 2], "verdict": "good", "data": 7, "beyond_length": None, "accuracy_interval": [1]},
        {"margins": {"a/b": "1", "c/d": True, "e/f": None}, "accuracy": "high", "accuracy_interval": ["a", "b"]},
        {"margins": {"a/b": 10**400, "c/d": math.nan}, "accuracy": -math.inf, "data": {"num_trained_prompts": 10**400}},
    ],
)
def test_reports_of_other_programs_are_read_as_far_as_they_go(report: object) -> None:
    filed = read_filed(EvaluationRecord("own", json.dumps(report), datetime.now(UTC)))
    assert filed == FiledEvaluation("own", "")
