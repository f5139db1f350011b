"""Golden examples: which texts, what is recorded, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from rm_server.backends.items import ChatMessage, Content, EncodedItem
from rm_server.errors import ConstantOutput, GoldenMismatch, ItemTooLong, NonFiniteScore
from rm_server.registry.manifest import GoldenExample, Manifest, TruncationRule
from rm_server.training.golden import check_golden, choose_golden_texts, record_golden
from rm_server.training.offline_scoring import Scored

NETWORK = Manifest(kind="sequence_classification")


class CharacterEncoder:
    """A token for each character or id; at most 50 of them."""

    def encode_usual(self, pairs: Sequence[tuple[Content, Content]]) -> Sequence[EncodedItem | None]:
        return [None] * len(pairs)

    def encode(self, prompt: Content, completion: Content, truncation: TruncationRule | None = None) -> EncodedItem:
        assert not any(isinstance(part, ChatMessage) for part in (*prompt, *completion))
        num_tokens = len(prompt) + len(completion)
        if num_tokens > 50:
            raise ItemTooLong("too long")
        return EncodedItem(np.zeros(num_tokens, np.int32), num_tokens)


def by_length(scale: float = 1.0):  # type: ignore[no-untyped-def]
    def score(texts: Sequence[tuple[Content, Content]]) -> list[Scored]:
        return [Scored(scale * len(completion)) for _, completion in texts]

    return score


def test_the_choice_spreads_over_the_lengths() -> None:
    texts = [("", "x" * length) for length in range(1, 33)]
    chosen = choose_golden_texts(texts[::-1], CharacterEncoder(), num_texts=4)
    assert [len(completion) for _, completion in chosen] == [1, 9, 17, 25]


def test_the_choice_spreads_over_a_large_file_without_reading_all_of_it_with_the_tokenizer() -> None:
    texts = [("", f"{index:06d}") for index in range(100_000)]
    chosen = [int(str(completion)) for _, completion in choose_golden_texts(texts, CharacterEncoder())]
    assert len(chosen) == 16
    assert max(chosen) > 90_000


def test_what_cannot_be_read_is_left_out() -> None:
    assert choose_golden_texts([("", "x" * 51), ("", "y")], CharacterEncoder()) == [("", "y")]
    assert choose_golden_texts([], CharacterEncoder()) == []


def test_a_turn_on_each_side_is_text_and_longer_chats_are_left_out() -> None:
    user, assistant = ChatMessage("user", "q"), ChatMessage("assistant", "a")
    texts: list[tuple[Content, Content]] = [
        ((user,), (assistant,)),
        ((user, assistant, user), (assistant,)),
        ((ChatMessage("system", "s"),), (assistant,)),
        ((1, 2), (3,)),
    ]
    assert choose_golden_texts(texts, CharacterEncoder()) == [("q", "a"), ((1, 2), (3,))]


def test_scores_and_tolerances_are_recorded() -> None:
    manifest = record_golden(NETWORK, [("p", "abc"), ((1,), (2, 3))], by_length())
    assert manifest.golden == (GoldenExample("p", "abc", 3.0), GoldenExample((1,), (2, 3), 2.0))
    assert manifest.tolerance == NETWORK.tolerance
    assert manifest.score_deciding() == NETWORK.score_deciding()


def test_tolerances_grow_with_large_scores() -> None:
    manifest = record_golden(NETWORK, [("p", "a"), ("p", "ab")], by_length(scale=25.0))
    assert manifest.tolerance == {name: 10 * allowed for name, allowed in NETWORK.tolerance.items()}


def test_a_network_without_opinion_is_refused_and_rules_may_have_none() -> None:
    texts: list[tuple[Content, Content]] = [("p", "aa"), ("p", "bb")]
    with pytest.raises(ConstantOutput, match="gives 2 for each of 2 different texts"):
        record_golden(NETWORK, texts, by_length())
    assert len(record_golden(Manifest(kind="rules"), texts, by_length()).golden) == 2


@pytest.mark.parametrize(
    ("manifest", "scale", "is_told"),
    [
        (NETWORK, 1e-3, True),
        (NETWORK, 1.1e-3, False),
        (Manifest(kind="onnx", precision="int8"), 1e-3, True),
        (Manifest(kind="rules"), 1e-3, False),
    ],
)
def test_scores_that_hardly_differ_are_told(
    manifest: Manifest, scale: float, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    record_golden(manifest, [("p", "a"), ("p", "ab")], by_length(scale))
    assert ("differ by 0.001 at most. Is the head trained?" in caplog.text) is is_told


def test_a_text_without_score_is_an_error() -> None:
    def score(texts: Sequence[tuple[Content, Content]]) -> list[Scored]:
        return [Scored(1.0), Scored(NonFiniteScore("nan"))]

    with pytest.raises(NonFiniteScore):
        record_golden(NETWORK, [("p", "a"), ("p", "b")], score)


def test_golden_examples_of_the_folder_are_checked() -> None:
    manifest = record_golden(NETWORK, [("p", "abc"), ("p", "a")], by_length())
    check_golden(manifest, by_length(scale=1.0003))
    with pytest.raises(GoldenMismatch, match=r"Golden example 0 .* should have 3 and got 3\.03"):
        check_golden(manifest, by_length(scale=1.01))
    with pytest.raises(GoldenMismatch):
        check_golden(manifest, by_length(scale=float("nan")))
