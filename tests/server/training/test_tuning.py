"""Which ways of computing are tried, and which is chosen among what was measured."""

from __future__ import annotations

import numpy as np
import pytest

from rm_server.registry.manifest import Manifest, Precision
from rm_server.training.tuning import Arm, Crew, Measured, best_arm, best_batch, best_of_each, crews, hopeful, lengths
from rm_server.training.tuning import precisions as precisions_of


def way(
    rate: float, precision: Precision = "fp32", crew: Crew = (1, 2), version: int = 1, tokens: int = 4096
) -> Measured:
    return Measured(Arm(("m", version), precision, crew), tokens, (0.5 * rate, rate, 9 * rate))


@pytest.mark.parametrize(
    ("device", "cores", "expected"),
    [
        ("cpu", 1, ((1, 1),)),
        ("cpu", 2, ((1, 2), (2, 1))),
        ("cpu", 8, ((1, 8), (2, 4), (8, 1))),
        ("cpu", 64, ((1, 64), (16, 4))),
        ("cuda", 8, ((1, 8),)),
    ],
)
def test_crews_use_all_cores(device: str, cores: int, expected: tuple[Crew, ...]) -> None:
    assert crews(device, cores) == expected


def test_precisions_are_those_that_the_version_can_be_loaded_in() -> None:
    assert precisions_of(Manifest("sequence_classification"), "cpu") == ("fp32", "bf16")
    assert precisions_of(Manifest("sequence_classification"), "cuda") == ("fp32", "bf16", "fp16")
    assert precisions_of(Manifest("onnx"), "cuda") == ("fp32",)
    assert precisions_of(Manifest("onnx", precision="int8"), "cpu") == ("int8",)


def test_lengths_are_those_of_training_runs_within_the_limit() -> None:
    drawn = lengths(0, 4000)
    assert np.median(drawn) == pytest.approx(180, rel=0.1)
    assert np.quantile(drawn, 0.95) == pytest.approx(600, rel=0.1)
    assert max(drawn) == 1024
    assert max(lengths(100, 400)) == 100
    assert set(lengths(3, 10)) == {3}


def test_one_slow_round_does_not_decide() -> None:
    assert way(100).tokens_per_s == 100


def test_the_far_slower_are_not_looked_at_again_each_version_by_itself() -> None:
    ways = [way(100), way(51, "bf16"), way(49, crew=(2, 1)), way(10, version=2)]
    assert hopeful(ways) == [ways[0].arm, ways[1].arm, ways[3].arm]


def test_one_slow_try_among_others_costs_nobody_his_turn() -> None:
    arms = [Arm(("m", 1), "fp32", crew) for crew in ((1, 2), (2, 1), (1, 1))]
    rates = ((100.0, 10.0, 90.0), (20.0, 150.0, 140.0), (70.0, 60.0, 50.0))
    assert hopeful([Measured(arm, 512, own) for arm, own in zip(arms, rates, strict=True)]) == arms[:2]


@pytest.mark.parametrize(
    ("ways", "expected"),
    [
        ([way(100), way(200, "bf16")], 1),
        # Nothing is given up for nothing: exactness, then memory.
        ([way(100), way(102, "bf16")], 0),
        ([way(102, "bf16"), way(101, "fp16")], 1),
        ([way(101, crew=(8, 1)), way(100)], 1),
        ([way(110, crew=(8, 1)), way(100)], 0),
    ],
)
def test_the_fastest_is_chosen_unless_a_better_one_is_about_as_fast(ways: list[Measured], expected: int) -> None:
    assert best_arm(ways) is ways[expected]


def test_the_smallest_batch_that_is_about_as_fast() -> None:
    ways = [way(100, tokens=8192), way(99, tokens=2048), way(100.5, tokens=4096), way(90, tokens=1024)]
    assert best_batch(ways).max_batch_tokens == 2048


def test_each_version_has_its_best() -> None:
    ways = [way(1), way(3, version=2), way(2, "bf16"), way(2, version=2)]
    assert best_of_each(ways) == [ways[2], ways[1]]
