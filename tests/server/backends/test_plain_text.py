"""Plain text gets the ids that the tokenizer itself gives it, by a shorter way; other text goes the tokenizer's."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from rm_server.backends.plain_text import PlainText

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "a",
    "b",
    "##a",
    "##b",
    "A",
    "fox",
    "##y",
    "'",
    ".",
    "[",
    "]",
    "sep",
    "SEP",
    "1",
]
CHARACTERS = "aAbB fFoOxXyY.'[]sepSEP1\t\n\r"


def make_tokenizer(normalizer: Any = None, **added: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer or normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens([AddedToken(word, **added) for word in ("[CLS]", "[SEP]")])
    return tokenizer


LOWERING = make_tokenizer(), make_tokenizer(normalizers.BertNormalizer(lowercase=False))


@pytest.mark.parametrize("tokenizer", LOWERING, ids=["lower case", "as it is"])
@given(text=st.one_of(st.text(CHARACTERS), st.text(st.characters(max_codepoint=200))))
def test_the_ids_are_the_tokenizers_own(tokenizer: Tokenizer, text: str) -> None:
    plain = PlainText.of(tokenizer)
    assert plain is not None
    normalized = plain.normalized(text)
    if normalized is not None:
        assert plain.tokenizer.encode(normalized).ids == tokenizer.encode(text).ids


@pytest.mark.parametrize("text", ["A fox.", "", "\tA\r\nfox's [b]!"])
def test_plain_text_goes_the_shorter_way(text: str) -> None:
    plain = PlainText.of(LOWERING[0])
    assert plain is not None
    assert plain.normalized(text) == text.lower()
    assert plain.normalized_all((text, "B")) == (text.lower(), "b")


@pytest.mark.parametrize("text", ["é", "汉", "a\x00b", "a\x7fb", "a\x0bb", "a [SEP] b", "\u200b"])
def test_other_text_does_not(text: str) -> None:
    plain = PlainText.of(LOWERING[0])
    assert plain is not None
    assert plain.normalized(text) is None
    assert plain.normalized_all(("a", text)) is None


@pytest.mark.parametrize(
    "tokenizer",
    [
        make_tokenizer(normalizers.NFKC()),
        make_tokenizer(normalizers.Sequence([normalizers.BertNormalizer(), normalizers.Replace("a", "b")])),
        make_tokenizer(normalized=True),
    ],
    ids=["another normaliser", "more than one", "an added token that is looked for in normalised text"],
)
def test_a_tokenizer_of_another_kind_has_no_shorter_way(tokenizer: Tokenizer) -> None:
    assert PlainText.of(tokenizer) is None
