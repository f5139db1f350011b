"""Facts and signs of a run, computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from ppo_client.ppo.run_facts import evaluation_signs, run_facts, signs
from ppo_client.ppo.text_facts import distinct_share, repeated_share


def row(step: int, score: float, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "episodes": step * 8,
        "score_mean": score,
        "score_std": 0.5,
        "kl": float(step),
        "entropy": 3.0 - step / 10,
        "response_tokens_mean": 20.0,
        "eos_rate": 0.75,
        "reward_model": "m",
        "reward_version": 1,
        "step_s": 2.0,
        "reward_wait_s": 0.5,
        **more,
    }


def test_facts_compare_the_ends() -> None:
    rows = [row(step, step / 10) for step in range(1, 21)]
    rows[11] |= {"reward_version": 2, "events": [{"kind": "version_changed", "is_calibrated": False}]}
    rows[13] |= {"events": [{"kind": "normalizer_fitted", "gain": 2.0}]}
    rows[15] |= {"events": [{"kind": "version_changed", "is_calibrated": True}]}
    rows[17] |= {"events": [{"kind": "setting_changed", "setting": "ppo.learning_rate"}]}
    rows[12:] = [entry | {"reward_version": 2} for entry in rows[12:]]
    facts = run_facts(rows)
    assert facts.score_first == pytest.approx(0.15)
    assert facts.score_last == pytest.approx(1.95)
    assert facts.kl_last == pytest.approx(19.5)
    assert facts.versions == ["m@1", "m@2"]
    assert (facts.switch_steps, facts.incomparable_steps) == ([12, 16], [12])
    assert facts.reward_wait_share == pytest.approx(0.25)
    assert (facts.num_steps, facts.episodes, facts.seconds) == (20, 160, 40.0)
    assert facts.to_dict()["eos_rate_last"] == 0.75


def test_of_several_models_each_is_named() -> None:
    rows = [row(1, 0.5), row(2, 0.5, reward_versions=["m@1 (abc)", "n@3 (def)"])]
    rows.append(row(3, 0.5, reward_versions=["m@1 (abc)", "n@4 (123)"]))
    assert run_facts(rows).versions == ["m@1", "m@1 + n@3", "m@1 + n@4"]


def test_one_step_is_first_and_last() -> None:
    facts = run_facts([row(1, 0.5)])
    assert facts.score_first == facts.score_last == 0.5


def test_repetition() -> None:
    assert distinct_share(["a b c", "a b d"], 2) == pytest.approx(3 / 4)
    assert repeated_share(["a b a b a b", "x"], 2) == pytest.approx(1 - 2 / 5)
    assert distinct_share(["a", ""], 2) is None
    assert repeated_share([], 3) is None


def test_signs_compare_earlier_and_later_samples() -> None:
    varied = ["one two three", "four", "five six"]
    samples = [{"completion": text, "score": score} for text, score in zip(varied, (0.1, 0.5, 0.2), strict=True)]
    samples += [{"completion": " ".join(["ha"] * n), "score": float(n)} for n in (3, 5, 9)]
    length, distinct, repeated = signs(samples)
    assert length.first is not None
    assert length.first < 0
    assert length.last == pytest.approx(1.0)
    assert distinct.first == 1.0
    assert distinct.last == pytest.approx(1 / 14)
    assert repeated.first == 0.0
    assert repeated.last is not None
    assert repeated.last > 0.5


def test_where_the_reward_itself_judges_no_sign_is_of_a_second_opinion() -> None:
    alone = {"versions": ["m@1"], "judges": ["m@1"], "score_length_correlation": 0.1, "repeated_3": 0.2}
    assert [sign.last for sign in evaluation_signs([alone])] == [0.1, 0.2]


def test_no_samples_no_signs() -> None:
    assert all(sign.first is None and sign.last is None for sign in signs([]))
