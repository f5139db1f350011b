"""Plain text gets the ids that the tokenizer itself gives it, by a shorter way; other text goes the tokenizer's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from rm_server.backends.tokenization.plain_text import PlainText, Text

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


def changed(**parts: Any) -> Tokenizer:
    tokenizer = make_tokenizer()
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


LOWERING = make_tokenizer(), make_tokenizer(normalizers.BertNormalizer(lowercase=False))
TEXTS = st.one_of(st.text(CHARACTERS), st.text(st.characters(max_codepoint=200)))


def plain_text(tokenizer: Tokenizer) -> PlainText:
    plain = PlainText.of(tokenizer)
    assert plain is not None
    return plain


PLAIN = tuple(map(plain_text, LOWERING))


def own(tokenizer: Tokenizer, text: Text, adds: bool) -> tuple[list[int], list[int]]:
    (encoding,) = tokenizer.encode_batch([text], add_special_tokens=adds)
    return encoding.ids, encoding.type_ids


def by_words(plain: PlainText, text: Text, adds: bool) -> tuple[list[int], list[int]] | None:
    found = plain.encode(text, add_special_tokens=adds)
    if found is None:
        return None
    ids, type_ids = found
    return ids.tolist(), [0] * len(ids) if type_ids is None else type_ids.tolist()


@pytest.mark.parametrize("which", [0, 1], ids=["lower case", "as it is"])
@given(text=st.one_of(TEXTS, st.tuples(TEXTS, TEXTS)), adds=st.booleans())
def test_the_ids_are_the_tokenizers_own(which: int, text: Text, adds: bool) -> None:
    found = by_words(PLAIN[which], text, adds)
    assert found is None or found == own(LOWERING[which], text, adds)


@pytest.mark.parametrize("text", ["A fox.", "", " \n", "\tA\r\nfox's [b]!", ("A fox?", "aB"), ("", "a")])
def test_plain_text_goes_the_shorter_way(text: Text) -> None:
    assert by_words(PLAIN[0], text, True) == own(LOWERING[0], text, True)
    assert by_words(PLAIN[0], text, False) == own(LOWERING[0], text, False)


@pytest.mark.parametrize(
    "text", ["é", "汉", "a\x00b", "a\x7fb", "a\x0bb", "a [SEP] b", "\u200b", "a" * 101, "a " * 50_001]
)
def test_other_text_does_not(text: str) -> None:
    assert by_words(PLAIN[0], text, True) is None
    assert by_words(PLAIN[0], ("a", text), True) is None


def test_a_word_goes_through_the_tokenizer_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, learnt = plain_text(LOWERING[0]), []
    learn = plain._learnt
    monkeypatch.setattr(plain, "_learnt", lambda words: learnt.append(sorted(words)) or learn(words))
    for text in ("fox ab", "Fox ba.", ("AB", "fox bb fox")):
        assert by_words(plain, text, True) == own(LOWERING[0], text, True)
    assert learnt == [["ab", "fox"], ["ba"], ["bb"]]


def test_words_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rm_server.backends.tokenization.plain_text.MAX_WORDS", 40)
    plain = plain_text(LOWERING[0])
    for number in range(30):
        text = " ".join(["a" * (1 + number), "b" * (1 + number), "fox ab."])
        assert by_words(plain, text, True) == own(LOWERING[0], text, True)
        assert len(plain._known) <= 40


def test_threads_learn_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rm_server.backends.tokenization.plain_text.MAX_WORDS", 60)
    plain = plain_text(LOWERING[0])
    texts = [
        " ".join("ab" * (number % 7) + "a" * (number % 11) + "." for number in range(start, start + 9))
        for start in range(400)
    ]
    expected = [own(LOWERING[0], text, True) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda text: by_words(plain, text, True), texts)) == expected


@pytest.mark.parametrize(
    "tokenizer",
    [
        make_tokenizer(normalizers.NFKC()),
        make_tokenizer(normalizers.Sequence([normalizers.BertNormalizer(), normalizers.Replace("a", "b")])),
        changed(pre_tokenizer=pre_tokenizers.Whitespace()),
        changed(model=models.WordLevel({"[UNK]": 0, "a": 1, "[SEP]": 2, "[CLS]": 3}, unk_token="[UNK]")),
        make_tokenizer(normalized=True),
    ],
    ids=[
        "another normaliser",
        "more than one",
        "another cut into words",
        "another model",
        "an added token that is looked for in normalised text",
    ],
)
def test_a_tokenizer_of_another_kind_has_no_shorter_way(tokenizer: Tokenizer) -> None:
    assert PlainText.of(tokenizer) is None
