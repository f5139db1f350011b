"""What refuses a version, and what does not."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from rm_server.backends.items import Content, EncodedItem
from rm_server.engine.checks import Probes, check, probes_of
from rm_server.errors import BrokenVersion, ConstantOutput, GoldenMismatch, NonFiniteScore, UnsupportedContent
from rm_server.registry.manifest import GoldenExample, Kind, Manifest, Precision, TruncationRule

KEY = ("m", 3)


def probes(golden: Sequence[float], num_items: int = 4) -> Probes:
    items = tuple(EncodedItem(np.arange(number + 1, dtype=np.int32), number + 1) for number in range(num_items))
    return Probes(items, tuple(golden))


@pytest.mark.parametrize(
    ("golden", "scores", "precision", "refusal"),
    [
        ([1.0, 2.0], [1.0, 2.0, 5.0, 6.0], "fp32", None),
        ([1.0, 2.0], [1.0009, 2.0, 5.0, 6.0], "fp32", None),
        ([1.0, 2.0], [1.0011, 2.0, 5.0, 6.0], "fp32", GoldenMismatch),
        # A wider tolerance for a narrower precision.
        ([1.0, 2.0], [1.1, 2.0, 5.0, 6.0], "bf16", None),
        ([1.0, 2.0], [1.1, 2.0, 5.0, 6.0], "fp16", GoldenMismatch),
        ([1.0, 2.0], [2.0, 1.0, 5.0, 6.0], "fp32", GoldenMismatch),
        # Not only golden scores must be finite.
        ([1.0, 2.0], [1.0, 2.0, math.nan, 6.0], "fp32", NonFiniteScore),
        ([1.0, 2.0], [math.inf, 2.0, 5.0, 6.0], "fp32", NonFiniteScore),
        ([], [7.0, 7.0, 7.0, 7.0], "fp32", ConstantOutput),
        ([7.0, 7.0], [7.0, 7.0, 7.0, 7.0], "fp32", ConstantOutput),
        ([], [7.0, 7.0, 7.0, 7.00001], "fp32", None),
        ([], [1e-4, 1e-4, 1e-4, 2e-4], "fp32", None),
        ([], [0.1, 0.1, 0.1, 0.1 + 1e-8], "fp32", ConstantOutput),
        ([], [1e6, 1e6, 1e6, 1e6 + 0.5], "fp32", ConstantOutput),
    ],
)
def test_refusals(
    golden: list[float], scores: list[float], precision: Precision, refusal: type[BrokenVersion] | None
) -> None:
    manifest = Manifest("sequence_classification")
    if refusal is None:
        check(KEY, manifest, precision, probes(golden), np.array(scores))
    else:
        with pytest.raises(refusal, match="m@3"):
            check(KEY, manifest, precision, probes(golden), np.array(scores))


def test_the_message_says_which_golden_example_is_off() -> None:
    with pytest.raises(GoldenMismatch, match=r"2 of 3 golden .* example 1 should have 2 and got 9"):
        check(KEY, Manifest("onnx"), "fp32", probes([1.0, 2.0, 3.0]), np.array([1.0, 9.0, 4.0, 0.0]))


@pytest.mark.parametrize(("score", "is_small"), [(1.0099, True), (1.0101, False)])
def test_a_small_difference_may_be_rounding(score: float, is_small: bool) -> None:
    with pytest.raises(GoldenMismatch) as refused:
        check(KEY, Manifest("sequence_classification"), "fp32", probes([1.0, 2.0]), np.array([score, 2.0, 5.0, 6.0]))
    assert ("may also be rounding" in refused.value.message) is is_small


@pytest.mark.parametrize("kind", ["rules", "composite"])
def test_rules_may_be_constant(kind: Kind) -> None:
    check(KEY, Manifest(kind), "", probes([]), np.full(4, 7.0))


def test_golden_examples_of_rules_are_checked_like_fp32() -> None:
    with pytest.raises(GoldenMismatch):
        check(KEY, Manifest("rules"), "", probes([1.0]), np.array([1.01, 2.0, 2.0, 2.0]))


def test_one_trial_item_alone_cannot_show_that_the_output_is_constant() -> None:
    check(KEY, Manifest("sequence_classification"), "fp32", probes([], num_items=1), np.array([7.0]))


def test_a_precision_without_tolerance_is_refused() -> None:
    manifest = Manifest("sequence_classification", tolerance={"fp32": 1e-3})
    with pytest.raises(GoldenMismatch, match=r"tolerance\.bf16"):
        check(KEY, manifest, "bf16", probes([1.0]), np.array([1.0, 2.0, 3.0, 4.0]))


class PickyEncoder:
    """Reads what it was told to read, by the type of the completion."""

    def __init__(self, *readable: type) -> None:
        self._readable = readable

    def encode_usual(self, pairs: Sequence[tuple[Content, Content]]) -> Sequence[EncodedItem | None]:
        return [None] * len(pairs)

    def encode(self, prompt: Content, completion: Content, truncation: TruncationRule | None = None) -> EncodedItem:
        if not isinstance(completion, self._readable):
            raise UnsupportedContent("not this")
        return EncodedItem(np.array([len(completion)], np.int32), 1)


@pytest.mark.parametrize(("readable", "is_tried"), [((str,), True), ((tuple,), True), ((), False)])
def test_tries_what_the_version_can_read(readable: tuple[type, ...], is_tried: bool) -> None:
    made = probes_of(PickyEncoder(*readable), Manifest("sequence_classification"))
    assert (len(made.items) > 2) is is_tried
    assert made.golden_scores == ()


def test_golden_examples_come_first() -> None:
    manifest = Manifest(
        "sequence_classification", golden=(GoldenExample("p", "abc", 1.5), GoldenExample("p", "ab", 2.5))
    )
    made = probes_of(PickyEncoder(str), manifest)
    assert [item.ids[0] for item in made.items[:2]] == [3, 2]
    assert made.golden_scores == (1.5, 2.5)


def test_a_golden_example_that_cannot_be_encoded_refuses_the_version() -> None:
    manifest = Manifest("sequence_classification", golden=(GoldenExample((1,), (2,), 1.5),))
    with pytest.raises(GoldenMismatch, match="Golden example 0 cannot be encoded: not this"):
        probes_of(PickyEncoder(str), manifest)
