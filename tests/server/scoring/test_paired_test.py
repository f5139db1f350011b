"""The paired test against scipy's exact tests and against all signs gone through by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from rm_server.scoring.comparison.paired_test import MAX_EXACT_STEPS, compare, sign_flip_p_value


@pytest.mark.parametrize(("won", "lost"), [(0, 6), (10, 3), (25, 25), (40, 61)])
def test_with_a_pair_a_prompt_it_is_mcnemars_exact_test(won: int, lost: int) -> None:
    new = {f"{i:08x}/p{i}": 1.0 if i < won else -1.0 for i in range(won + lost)}
    present = {key: -margin for key, margin in new.items()}
    both_right = {f"same{i}/s{i}": 0.5 for i in range(30)}
    found = compare(new | both_right, present | both_right)
    assert found is not None
    assert (found.num_pairs, found.num_prompts, found.num_won, found.num_lost) == (won + lost + 30,) * 2 + (won, lost)
    assert found.p_value == pytest.approx(stats.binomtest(won, won + lost).pvalue)
    assert found.share - found.present_share == pytest.approx((won - lost) / (won + lost + 30))


@pytest.mark.parametrize("differences", [[3, -1, 2, 2, 5], [1, 0, -4, 2], [2, 2, 2, -2], [7]])
def test_prompts_are_turned_as_a_whole(differences: list[int]) -> None:
    sums = [sum(s * d for s, d in zip(signs, differences, strict=True)) for signs in
            itertools.product((-1, 1), repeat=len(differences))]  # fmt: skip
    expected = np.mean([abs(value) >= abs(sum(differences)) for value in sums])
    assert sign_flip_p_value(differences) == pytest.approx(expected)


def test_pairs_of_one_prompt_say_less_than_pairs_of_many() -> None:
    one_way = {f"{prompt}/{prompt}-{pair}": -1.0 for prompt in "abcde" for pair in range(20)}
    found = compare(one_way, dict.fromkeys(one_way, 1.0))
    assert found is not None
    assert (found.num_lost, found.p_value) == (100, pytest.approx(2 / 2**5))


def test_a_tie_counts_half() -> None:
    found = compare({"a/1": 0.0, "b/2": 2.0}, {"a/1": 1.0, "b/2": 2.0})
    assert found is not None
    assert (found.share, found.present_share, found.num_lost) == (0.75, 1.0, 1)


def test_pairs_are_matched_whatever_their_prompts_are_called() -> None:
    found = compare({"a/1": 1.0, "a/2": 1.0}, {"x/1": -1.0, "y/3": 1.0})
    assert found is not None
    assert (found.num_pairs, found.num_won) == (1, 1)
    assert compare({"a/1": 1.0}, {"a/2": 1.0}) is None


def test_no_difference_is_no_evidence() -> None:
    assert sign_flip_p_value([]) == sign_flip_p_value([0, 0]) == sign_flip_p_value([1, -1]) == 1.0


def test_many_differences_are_left_to_the_normal_distribution() -> None:
    rng = np.random.default_rng(0)
    differences = [int(value) for value in rng.choice([-3, -1, 1, 2, 3], size=MAX_EXACT_STEPS // 2 - 800)]
    exact = sign_flip_p_value(differences)
    more = sign_flip_p_value(differences * 2)
    assert sum(map(abs, differences)) <= MAX_EXACT_STEPS < 2 * sum(map(abs, differences))
    z = abs(sum(differences)) / np.sqrt(sum(d * d for d in differences))
    assert exact == pytest.approx(2 * stats.norm.sf(z), rel=0.02)
    assert more == pytest.approx(2 * stats.norm.sf(z * np.sqrt(2)), rel=0.02)
