from __future__ import annotations

from typing import Any

from ppo_client.ppo.conditions import Conditions, changes_over, differences, digest_of, made_alike, scale_of
from ppo_client.ppo.config import RewardModelConfig
from ppo_client.ppo.prompts import Prompt

CONDITIONS = Conditions(
    prompts="1a2b",
    min_response_tokens=1,
    max_response_tokens=48,
    temperature=1.0,
    scores="raw",
    truncation=None,
    empty_score=None,
    seed=0,
)


def row(name: str, **changes: Any) -> dict[str, Any]:
    return {"name": name, "versions": ["m@1"], "judges": ["m@2"], "conditions": CONDITIONS.to_dict() | changes}


def test_rows_under_one_set_of_conditions_do_not_differ() -> None:
    assert differences([]) == []
    assert differences([row("a")]) == []
    assert differences([row("a"), row("b"), row("c")]) == []


def test_what_differs_is_named_with_each_row_s_value() -> None:
    other = row("c", scores="calibrated") | {"versions": ["m@3", "n@1"], "judges": []}
    found = differences([row("a"), row("b", max_response_tokens=64), other])
    assert found == [
        "most tokens: 48 (a), 64 (b), 48 (c)",
        "scores: raw (a), raw (b), calibrated (c)",
        "scored by: m@1 (a), m@1 (b), m@3, n@1 (c)",
        "judged by: m@2 (a), m@2 (b),  (c)",
    ]


def test_every_condition_counts() -> None:
    for name in CONDITIONS.to_dict():
        assert len(differences([row("a"), row("b", **{name: "other"})])) == 1, name


def test_a_row_that_says_nothing_is_named() -> None:
    old = row("old")
    del old["conditions"]
    assert differences([row("a"), old]) == ["old does not say under what conditions it was made"]


def test_what_changed_over_a_run_is_named_by_the_steps_in_which_it_did() -> None:
    judges = ("m@2", "m@2", "m@3", "m@3", "m@2")
    rows = [row("") | {"step": step, "judges": [judge]} for step, judge in enumerate(judges, 1)]
    assert changes_over(rows) == ["judged by: m@2 (step 1), m@3 (step 3), m@2 (step 5)"]
    assert changes_over(rows[:2]) == changes_over(rows[:1]) == changes_over([]) == []
    assert [one["step"] for one in made_alike(rows)] == [1, 2, 5]


def test_prompts_are_what_either_model_is_told() -> None:
    prompt = Prompt([1, 2], "a fox", "a fox")
    assert digest_of([prompt]) == digest_of([Prompt([1, 2], "a fox", "shown otherwise")])
    told = [prompt, Prompt([1, 3], "a fox", "a fox"), Prompt([1, 2], "Write: a fox", "a fox")]
    assert len({digest_of([one]) for one in told} | {digest_of(told)}) == 4


def test_scales() -> None:
    assert scale_of([RewardModelConfig("m")]) == "raw"
    assert scale_of([RewardModelConfig("m", calibrated=True)]) == "calibrated"
    assert scale_of([RewardModelConfig("m", 0.5), RewardModelConfig("n", -1, calibrated=True)]) == (
        "0.5 × raw + -1 × calibrated"
    )
