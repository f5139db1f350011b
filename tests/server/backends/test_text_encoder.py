"""The ids are those that a plain transformers user gets, and every way to go wrong has its own error."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from tiny_models import BOS, BOS_ID, CHAT_TEMPLATE, CLS, CLS_ID, EOS, EOS_ID, SEP, SEP_ID, VOCAB_SIZE
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rm_server.backends.items import ChatMessage, Content, RenderedText
from rm_server.backends.loading import load_text_encoder
from rm_server.backends.tokenization.content_checks import MAX_CHARACTERS
from rm_server.backends.tokenization.text_encoder import TextEncoder
from rm_server.errors import EmptyItem, InvalidTokenIds, ItemTooLong, UnsupportedArtifact, UnsupportedContent
from rm_server.registry.manifest import Manifest

JOINED = Manifest(kind="sequence_classification", max_tokens=100)
PAIR = replace(JOINED, template="pair")
CHAT = replace(JOINED, template="chat")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.make_checkpoint(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.make_checkpoint(tmp_path_factory.mktemp("llama"), "llama", chat_template=CHAT_TEMPLATE)


def encoder(folder: Path, manifest: Manifest, **changes: Any) -> TextEncoder:
    return load_text_encoder(folder, replace(manifest, **changes))


def test_joined_text_is_tokenised_in_one_piece(llama: Path) -> None:
    item = encoder(llama, JOINED).encode("on t", "he line")
    plain = AutoTokenizer.from_pretrained(llama)
    assert item.ids.tolist() == plain("on the line")["input_ids"]
    assert item.num_tokens == len(item.ids)
    # "on", " the": the token across the seam is the completion's first.
    assert plain.decode(item.ids[: item.completion_start]) == "on"


def test_special_tokens_are_the_tokenizer_s_own_or_left_out(bert: Path) -> None:
    plain = AutoTokenizer.from_pretrained(bert)
    assert encoder(bert, JOINED).encode("a", "b").ids.tolist() == [CLS_ID, *plain.encode("ab")[1:-1], SEP_ID]
    bare = encoder(bert, JOINED, add_special_tokens=False).encode("a", "b")
    assert bare.ids.tolist() == plain.encode("ab", add_special_tokens=False)
    assert bare.completion_start == 1


def test_a_pair_has_two_segments(bert: Path) -> None:
    item = encoder(bert, PAIR).encode("the one", "in her")
    plain = AutoTokenizer.from_pretrained(bert)("the one", "in her")
    assert item.ids.tolist() == plain["input_ids"]
    assert item.type_ids is not None
    assert item.type_ids.tolist() == plain["token_type_ids"]
    assert item.completion_start == item.ids.tolist().index(SEP_ID) + 1


def test_a_completion_without_prompt_stands_alone(bert: Path, llama: Path) -> None:
    alone = encoder(bert, PAIR).encode("", "in her")
    assert alone.ids.tolist() == AutoTokenizer.from_pretrained(bert)("in her")["input_ids"]
    assert alone.type_ids is None
    rendered = encoder(llama, CHAT).encode("", "[user] hi<eos>")
    assert rendered.ids.tolist() == AutoTokenizer.from_pretrained(llama).encode("[user] hi<eos>")
    with pytest.raises(EmptyItem, match="needs one"):
        encoder(llama, JOINED, template="Q: {prompt} A: {completion}").encode("", "in her")


@pytest.mark.parametrize("template", ["chat", "{prompt}{completion}"])
@pytest.mark.parametrize("begins", [BOS, ""], ids=["as OpenRLHF sends it", "as verl sends it"])
def test_a_rendered_text_begins_with_the_version_s_token_once(tmp_path: Path, template: str, begins: str) -> None:
    folder = tiny_models.make_checkpoint(
        tmp_path, "llama", chat_template="{{ bos_token }}" + CHAT_TEMPLATE, adds_special_tokens=True
    )
    plain = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "on"}, {"role": "assistant", "content": "the line"}]
    expected = plain.apply_chat_template(messages, return_dict=False)
    assert expected[0] == BOS_ID
    text = plain.apply_chat_template(messages, tokenize=False).removeprefix(BOS)
    item = encoder(folder, JOINED, template=template).encode("", RenderedText(begins + text))
    assert item.ids.tolist() == expected
    assert item.completion_start == (0 if begins else 1)


def test_a_rendered_text_gets_no_token_that_the_version_has_not(llama: Path, bert: Path) -> None:
    plain = AutoTokenizer.from_pretrained(llama)
    for manifest in (CHAT, JOINED):
        assert encoder(llama, manifest).encode("", RenderedText("on the")).ids.tolist() == plain.encode("on the")
    whole = [CLS_ID, *plain.encode("on the"), SEP_ID]
    for text in ("on the", f"{CLS}on the{SEP}"):
        assert encoder(bert, PAIR).encode("", RenderedText(text)).ids.tolist() == whole


@pytest.mark.parametrize("template", ["pair", "Q: {prompt} A: {completion}"])
def test_a_rendered_text_is_parted_where_the_version_reads_its_parts_apart(bert: Path, template: str) -> None:
    version = encoder(bert, PAIR, template=template)
    parted, apart = version.encode("", RenderedText("the one in her", "the one")), version.encode("the one", " in her")
    (usual,) = version.encode_usual([("", RenderedText("the one in her", "the one"))])
    assert usual is not None
    assert parted.ids.tolist() == usual.ids.tolist() == apart.ids.tolist()
    assert parted.ids.tolist() != encoder(bert, PAIR).encode("", "the one in her").ids.tolist()


def test_a_rendered_text_that_cannot_be_parted_stands_alone(bert: Path, llama: Path) -> None:
    for prompt in ("in her", "the one in", ""):  # it begins otherwise; nothing but white space is left; none was sent
        alone = encoder(bert, PAIR).encode("", RenderedText("the one in ", prompt))
        assert alone.ids.tolist() == encoder(bert, PAIR).encode("", "the one in ").ids.tolist()
    for manifest in (CHAT, JOINED):  # as one text both read what the policy saw
        parted = encoder(llama, manifest).encode("", RenderedText("on the line", "on"))
        assert parted.ids.tolist() == encoder(llama, manifest).encode("", RenderedText("on the line")).ids.tolist()


def test_a_rendered_text_is_left_alone_where_the_template_takes_other_messages_only(tmp_path: Path) -> None:
    template = "{% if messages|length < 2 %}{{ raise_exception('a pair') }}{% endif %}<bos>"
    folder = tiny_models.make_checkpoint(tmp_path, "llama", chat_template=template)
    item = encoder(folder, CHAT).encode("", RenderedText("on the"))
    assert item.ids.tolist() == AutoTokenizer.from_pretrained(folder).encode("on the")


def test_the_template_is_filled_in_one_pass(llama: Path) -> None:
    item = encoder(llama, JOINED, template="Q: {prompt}{} A: {completion}.").encode("{completion}", "{prompt}")
    text = "Q: {completion}{} A: {prompt}."
    plain = AutoTokenizer.from_pretrained(llama)
    assert item.ids.tolist() == plain.encode(text)
    assert plain.decode(item.ids[item.completion_start :]) == "{prompt}."


def test_eos_is_appended_once(llama: Path) -> None:
    eager = encoder(llama, JOINED, append_eos=True)
    assert eager.encode("a", "b").ids.tolist().count(EOS_ID) == 1
    assert eager.encode("a", "b").ids[-1] == EOS_ID
    assert eager.encode("a", f"b{EOS}").ids.tolist() == eager.encode("a", "b").ids.tolist()
    assert encoder(llama, JOINED).encode("a", "b").ids[-1] != EOS_ID


def test_padding_at_the_end_is_trimmed_where_the_manifest_says_so(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "llama", chat_template=CHAT_TEMPLATE, pad_token_id=EOS_ID)
    chat = encoder(folder, CHAT, trim_padding=True)
    whole = encoder(folder, CHAT).encode("on line?", "the one")
    assert whole.ids[-1] == EOS_ID
    ids = whole.ids[:-1].tolist()
    assert EOS_ID in ids, "after the user's turn"
    contents: list[tuple[Content, Content]] = [
        ("on line?", "the one"),
        ((ChatMessage("user", "on line?"),), (ChatMessage("assistant", "the one"),)),
        (tuple(ids[:3]), (*ids[3:], EOS_ID, EOS_ID)),
    ]
    for prompt, completion in contents:
        for item in (chat.encode(prompt, completion), *chat.encode_usual([(prompt, completion)])):
            if item is not None:
                assert (item.ids.tolist(), item.num_tokens) == (ids, len(ids))
    assert [token.id for token in chat.explain("on line?", "the one").tokens] == ids
    assert chat.encode("", (EOS_ID, EOS_ID)).ids.tolist() == [EOS_ID]


def test_padding_takes_no_room_that_ids_need(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "llama", pad_token_id=EOS_ID)
    short = encoder(folder, JOINED, trim_padding=True, max_tokens=6)
    padding = (EOS_ID,) * 10
    for rule in ("refuse", "keep_end", "keep_start"):
        fits = short.encode((7, 8, 9), (10, 11, *padding), rule)
        assert (fits.ids.tolist(), fits.truncated, fits.completion_start) == ([7, 8, 9, 10, 11], False, 3)
    cut = short.encode((7, 8, 9, 10, 11), (12, 13, 14, *padding), "keep_end")
    assert (cut.ids.tolist(), cut.truncated, cut.completion_start) == ([9, 10, 11, 12, 13, 14], True, 3)
    with pytest.raises(ItemTooLong, match="has 8 tokens, the version takes 6"):
        short.encode((7, 8, 9, 10, 11), (12, 13, 14, *padding))


def test_chat_is_rendered_by_the_tokenizer_s_template(llama: Path) -> None:
    plain = AutoTokenizer.from_pretrained(llama)
    item = encoder(llama, CHAT).encode("on line?", "the one")
    messages = [{"role": "user", "content": "on line?"}, {"role": "assistant", "content": "the one"}]
    assert item.ids.tolist() == plain.apply_chat_template(messages, return_dict=False)
    assert plain.decode(item.ids[item.completion_start :]) == " the one<eos>"
    talk = (ChatMessage("system", "be kind"), ChatMessage("user", "on line?"))
    longer = encoder(llama, JOINED).encode(talk, (ChatMessage("assistant", "the one"),))
    assert longer.ids.tolist() == plain.apply_chat_template(
        [{"role": "system", "content": "be kind"}, *messages], return_dict=False
    )
    assert plain.decode(longer.ids[longer.completion_start :]) == " the one<eos>"
    for reader in (encoder(llama, JOINED), encoder(llama, CHAT)):
        answered = reader.encode(talk, "the one")  # text is the assistant's turn
        assert answered.ids.tolist() == longer.ids.tolist()
        assert answered.completion_start == longer.completion_start


def test_messages_need_a_chat_template_that_takes_them(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedContent, match="no chat template"):
        encoder(bert, JOINED).encode((ChatMessage("user", "a"),), (ChatMessage("assistant", "b"),))
    with pytest.raises(UnsupportedArtifact, match="no chat template"):
        encoder(bert, CHAT)
    strict = "{{ raise_exception('only users') }}"
    folder = tiny_models.make_checkpoint(tmp_path, "llama", chat_template=strict)
    with pytest.raises(UnsupportedContent, match=r"roles: tool, assistant.*only users"):
        encoder(folder, CHAT).encode((ChatMessage("tool", "a"),), (ChatMessage("assistant", "b"),))


def test_token_ids_are_used_as_they_are(bert: Path) -> None:
    item = encoder(bert, PAIR).encode((7, 8), (9,))
    assert (item.ids.tolist(), item.completion_start, item.type_ids) == ([7, 8, 9], 2, None)


@pytest.mark.parametrize("wrong", [VOCAB_SIZE, -1, 2**40, 2**80])
def test_token_ids_outside_of_the_vocabulary_are_refused(bert: Path, wrong: int) -> None:
    with pytest.raises(InvalidTokenIds, match=str(VOCAB_SIZE - 1)):
        encoder(bert, JOINED).encode((7,), (8, wrong))
    assert encoder(bert, JOINED).encode((7,), (8, VOCAB_SIZE - 1)).num_tokens == 3


def test_a_token_that_the_model_has_no_embedding_for_is_refused_by_name(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    eager = encoder(folder, JOINED)
    assert eager.encode_usual([("a", "b<new>")]) == [None]
    with pytest.raises(InvalidTokenIds, match=rf"'<new>', id {VOCAB_SIZE}, .* embeddings for {VOCAB_SIZE}"):
        eager.encode("a", "b<new>")
    (item,) = eager.encode_usual([("a", "b")])
    assert item is not None


def test_prompt_and_completion_are_of_one_kind(llama: Path) -> None:
    with pytest.raises(UnsupportedContent, match="different kinds"):
        encoder(llama, JOINED).encode("a", (7,))


@pytest.mark.parametrize("nothing", ["", ()])
def test_an_empty_completion_is_refused(llama: Path, nothing: Any) -> None:
    with pytest.raises(EmptyItem, match="no completion"):
        encoder(llama, JOINED).encode("a", nothing)


def test_a_text_for_which_the_tokenizer_has_no_token_is_refused() -> None:
    words = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="[UNK]"))  # which it has not
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    knows_two = TextEncoder(tokenizer, JOINED, vocabulary_size=2, max_tokens=100, uses_type_ids=False)
    assert knows_two.encode("", "a b").ids.tolist() == [0, 1]
    with pytest.raises(UnsupportedContent, match=r"Missing \[UNK\] token"):
        knows_two.encode("", "a c")


def test_text_that_is_no_unicode_is_refused(llama: Path, bert: Path) -> None:
    for folder, manifest in ((llama, JOINED), (llama, CHAT), (bert, PAIR)):
        with pytest.raises(UnsupportedContent, match="UTF-8"):
            encoder(folder, manifest).encode("ok", "half a pair \ud83d")


@pytest.mark.parametrize(
    ("max_tokens", "rule", "prompt", "completion"),
    [
        (9, "refuse", "pqrs", "wxyz"),
        (8, "keep_end", "qrs", "wxyz"),
        (4, "keep_end", "", "xyz"),
        (8, "keep_start", "pqrs", "wxy"),
        (6, "keep_start", "pqrs", "w"),
    ],
)
def test_truncation_leaves_eos(llama: Path, max_tokens: int, rule: str, prompt: str, completion: str) -> None:
    item = encoder(llama, JOINED, append_eos=True, max_tokens=max_tokens, truncation=rule).encode("pqrs", "wxyz")
    plain = AutoTokenizer.from_pretrained(llama)
    assert plain.decode(item.ids) == prompt + completion + EOS
    assert item.truncated == (prompt + completion != "pqrswxyz")
    assert item.completion_start == len(prompt)


def test_truncation_of_a_pair_keeps_its_segments(bert: Path) -> None:
    item = encoder(bert, PAIR, max_tokens=6, truncation="keep_end").encode("pqrs", "xy")
    assert AutoTokenizer.from_pretrained(bert).decode(item.ids) == "<cls>s<sep>xy<sep>"
    assert item.type_ids is not None
    assert item.type_ids.tolist() == [0, 0, 0, 1, 1, 1]
    assert item.completion_start == 3


def test_truncation_of_a_chat_keeps_its_end(llama: Path) -> None:
    item = encoder(llama, CHAT, max_tokens=22, truncation="keep_start").encode("q", "abcdefgh")
    assert AutoTokenizer.from_pretrained(llama).decode(item.ids).endswith("] ab<eos>")


def test_truncation_of_ids_keeps_special_tokens_at_the_ends(llama: Path) -> None:
    ids = encoder(llama, JOINED, max_tokens=5, truncation="keep_end")
    assert ids.encode((2, 10, 11, 12), (20, 21, EOS_ID)).ids.tolist() == [2, 12, 20, 21, EOS_ID]
    assert ids.encode((10, 11), (20, 21, 22, 23), "keep_start").ids.tolist() == [10, 11, 20, 21, 22]
    with pytest.raises(ItemTooLong, match="has 6 tokens, the version takes 5"):
        ids.encode((10, 11), (20, 21, 22, 23), "refuse")


def test_truncation_keeps_special_tokens_that_the_text_brings(llama: Path) -> None:
    item = encoder(llama, JOINED, max_tokens=5, truncation="keep_end").encode("<bos>pqrs", f"xy{EOS}")
    assert AutoTokenizer.from_pretrained(llama).decode(item.ids) == f"<bos>sxy{EOS}"


def test_a_request_s_truncation_wins_over_the_manifest_s(llama: Path) -> None:
    refusing = encoder(llama, JOINED, max_tokens=3)
    with pytest.raises(ItemTooLong):
        refusing.encode("pq", "xy")
    assert refusing.encode("pq", "xy", "keep_end").num_tokens == 3


def test_without_a_limit_in_the_manifest_the_architecture_s_holds(bert: Path) -> None:
    with pytest.raises(ItemTooLong, match="the version takes 128"):
        encoder(bert, JOINED, max_tokens=0).encode("", "x" * 127)


def test_many_threads_share_one_encoder(llama: Path) -> None:
    shared = encoder(llama, CHAT, max_tokens=60, truncation="keep_end")
    texts = [(f"question {n} " * (n % 7), f"answer {n} " * (1 + n % 11)) for n in range(200)]
    alone = [shared.encode(*pair).ids.tolist() for pair in texts]
    with ThreadPoolExecutor(8) as pool:
        together = [item.ids.tolist() for item in pool.map(lambda pair: shared.encode(*pair), texts * 3)]
    assert together == alone * 3


def test_text_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "bert")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Strip", "strip_left": True, "strip_right": True}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    for manifest in (
        JOINED,
        PAIR,
        replace(JOINED, add_special_tokens=False),
        replace(JOINED, template="A:{completion}"),
    ):
        for prompt, completion in ((" ", "\n"), ("", "  ")):
            with pytest.raises(EmptyItem, match="has no tokens of its own"):
                encoder(folder, manifest).encode(prompt, completion)
            assert encoder(folder, manifest).encode_usual([(prompt, completion)]) == [None]
    assert encoder(folder, JOINED).encode("", SEP).num_tokens == 3  # what the text brings is its own
    # A prompt with an answer of blanks is an item like another.
    item = encoder(folder, PAIR).encode("a", " ")
    assert item.completion_start == item.num_tokens


def test_a_text_that_is_far_longer_than_what_is_read_is_not_tokenised(llama: Path) -> None:
    text_encoder = encoder(llama, JOINED, truncation="keep_end")
    text_encoder._rust = None  # nobody asks it
    text_encoder._characters_per_token = 1e6  # whatever was learnt before
    text = "a" * (MAX_CHARACTERS + 1)
    for completion in (text, (ChatMessage("user", text),)):
        assert text_encoder.encode_usual([("", completion)]) == [None]
        with pytest.raises(ItemTooLong, match=r"2000\d+ characters; at most 2000000 are looked at"):
            text_encoder.encode("", completion)


def test_blanks_that_the_tokenizer_drops_are_not_looked_for_one_by_one(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "bert")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    text_encoder = encoder(folder, JOINED, truncation="keep_end")
    started = time.thread_time()
    item = text_encoder.encode("a " * 80_000, " " * 80_000 + "b")
    assert time.thread_time() - started < 5  # one by one, 13 s on a fast machine
    assert text_encoder.tokenizer.convert_ids_to_tokens(item.ids[item.completion_start].item()) == "b"


@pytest.mark.parametrize("manifest", [JOINED, PAIR])
def test_other_threads_run_while_a_long_text_is_tokenised(bert: Path, manifest: Manifest) -> None:
    text_encoder = encoder(bert, manifest, truncation="keep_end")
    text = "the line is on the line " * 20_000
    turns = 0
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(text_encoder.encode, "on", text)
        while not future.done():
            turns += 1
    # One or two turns are had at the beginning and the end by whoever keeps the others waiting meanwhile.
    assert turns > 1000


TEXTS: list[tuple[Content, Content]] = [
    ("the one ", "in her"),
    ("", "in her"),
    ("the one", " e\u0301t\u00e9 \U0001f600 the"),
    ("  on  ", "the\n\nline"),
    ("the ", "in her " * 40),
    ("x" * 500, "in her"),
    ((1, 2), (3,)),
    ("the", ""),
    ("the", "\ud800"),
    ((ChatMessage("user", "the"),), "in her"),
]


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("changes", [{}, {"template": "pair"}, {"template": "Q: {prompt} A: {completion}"}])
@pytest.mark.parametrize("append_eos", [False, True])
def test_what_is_encoded_at_once_has_the_ids_that_it_has_alone(
    family: str, changes: dict[str, Any], append_eos: bool, request: pytest.FixtureRequest
) -> None:
    reader = encoder(request.getfixturevalue(family), JOINED, **changes, append_eos=append_eos and family == "llama")
    usual = reader.encode_usual(TEXTS)
    # What is not text, is refused (the last template needs a prompt) or is cut has a closer look.
    assert [item is not None for item in usual] == [True, "Q" not in str(changes), True, True] + [False] * 6
    for (prompt, completion), item in zip(TEXTS, usual, strict=True):
        if item is not None:
            alone = reader.encode(prompt, completion)
            assert item.ids.tolist() == alone.ids.tolist()
            assert item.num_tokens == alone.num_tokens
            types = [None if found.type_ids is None else found.type_ids.tolist() for found in (item, alone)]
            assert types[0] == types[1]


def test_what_is_expected_to_be_cut_is_learned_from_the_texts_before(bert: Path) -> None:
    reader, pair = encoder(bert, JOINED, max_tokens=30), ("", "the " * 20)
    (usual,) = reader.encode_usual([pair])
    assert usual is not None
    for _ in range(20):
        reader.encode("", "t h e " * 20, "keep_end")
    assert reader.encode_usual([pair]) == [None]
    assert reader.encode(*pair).ids.tolist() == usual.ids.tolist()


def test_what_only_just_fits_is_encoded_at_once_and_what_does_not_is_cut(bert: Path) -> None:
    fits = encoder(bert, JOINED).encode("", "the " * 20)
    for max_tokens, is_usual in ((fits.num_tokens, True), (fits.num_tokens - 1, False)):
        (item,) = encoder(bert, JOINED, max_tokens=max_tokens).encode_usual([("", "the " * 20)])
        assert (item is not None) is is_usual
