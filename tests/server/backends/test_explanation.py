"""What `explain` says a version reads is what it computes on, token by token, and each token has its part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from tiny_models import BOS, CHAT_TEMPLATE, CLS_ID, EOS, EOS_ID, SEP_ID

from rm_server.backends.explanation import ExplainingEncoder, Reading
from rm_server.backends.items import ChatMessage, Content
from rm_server.backends.loading import load_text_encoder
from rm_server.backends.rules.backend import RulesEncoder
from rm_server.backends.rules.rule_list import read_rules
from rm_server.backends.tokenization.text_encoder import TextEncoder
from rm_server.errors import ItemTooLong
from rm_server.registry.manifest import Manifest, TruncationRule

JOINED = Manifest(kind="sequence_classification", max_tokens=100)
TALK = (ChatMessage("system", "be in line"), ChatMessage("user", "the one")), (ChatMessage("assistant", "on the line"),)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.make_checkpoint(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.make_checkpoint(tmp_path_factory.mktemp("llama"), "llama", chat_template=CHAT_TEMPLATE)


def encoder(folder: Path, **changes: Any) -> TextEncoder:
    return load_text_encoder(folder, replace(JOINED, **changes))


def of(reading: Reading, part: str) -> str:
    """The tokens of a part, joined as this tokenizer spells them."""
    return "".join(token.text for token in reading.tokens if token.part == part).replace("Ġ", " ")


@pytest.mark.parametrize(
    ("changes", "prompt", "completion", "rule"),
    [
        ({}, "on t", "he line", None),
        ({"append_eos": True}, "the one", " in her", None),
        ({"template": "Q: {prompt} A: {completion}", "max_tokens": 14}, "the one in her", "on the line", "keep_end"),
        ({"template": "Q: {prompt} A: {completion}", "max_tokens": 14}, "the one", "on the line of it", "keep_start"),
        ({"max_tokens": 3}, (5, 6, 7), (8, 9), "keep_end"),
        ({}, (5, 6, 7), (8, 9), None),
        ({"template": "chat"}, *TALK, None),
        ({"template": "chat", "max_tokens": 12}, *TALK, "keep_end"),
        ({"template": "chat"}, "", "[user] the one<eos>", None),
    ],
)
def test_the_tokens_are_those_that_are_computed_on(
    llama: Path, changes: dict[str, Any], prompt: Content, completion: Content, rule: TruncationRule | None
) -> None:
    reader = encoder(llama, **changes)
    item, reading = reader.encode(prompt, completion, rule), reader.explain(prompt, completion, rule)
    assert [token.id for token in reading.tokens] == item.ids.tolist()
    assert [token.text for token in reading.tokens] == reader.tokenizer.convert_ids_to_tokens(item.ids.tolist())
    assert (reading.num_tokens > item.num_tokens) is item.truncated
    assert reading.truncation == (rule or "refuse")
    assert isinstance(reader, ExplainingEncoder)


def test_the_parts_of_a_template(llama: Path) -> None:
    reading = encoder(llama, template="Q: {prompt} A: {completion}", append_eos=True).explain("the one", "on the line")
    assert reading.texts == ("Q: the one A: on the line",)
    assert of(reading, "prompt").strip() == "the one"
    assert of(reading, "completion").strip() == "on the line"
    assert of(reading, "added").replace(" ", "") == f"Q:A:{EOS}"
    assert reading.tokens[-1].id == EOS_ID


def test_a_token_over_the_seam_is_the_completion_s(llama: Path) -> None:
    reading = encoder(llama).explain("on t", "he line")
    assert reading.texts == ("on the line",)
    assert [(token.text, token.part) for token in reading.tokens][:2] == [("on", "prompt"), ("Ġthe", "completion")]


def test_a_pair_is_two_texts_and_its_marks_are_added(bert: Path) -> None:
    reading = encoder(bert, template="pair").explain("the one", "in her")
    assert reading.texts == ("the one", "in her")
    assert [token.id for token in reading.tokens if token.part == "added"] == [CLS_ID, SEP_ID, SEP_ID]
    parts = [token.part for token in reading.tokens]
    assert parts.index("completion") == parts.index("added", 1) + 1


def test_what_the_chat_template_writes_is_added(llama: Path) -> None:
    reading = encoder(llama, template="chat").explain(*TALK)
    assert of(reading, "prompt").replace(" ", "") == "beinlinetheone"
    assert of(reading, "completion").replace(" ", "") == "ontheline"
    assert "user" in of(reading, "added").replace(" ", "")
    assert encoder(llama).explain(TALK[0], "on the line") == reading  # text is the assistant's turn
    (text,) = reading.texts
    assert "".join(token.text for token in reading.tokens).replace("Ġ", " ").removeprefix(BOS) in text


def test_truncation_takes_the_parts_with_it(llama: Path) -> None:
    reader = encoder(llama, max_tokens=4)
    whole = encoder(llama).explain("the one in her", " on the line").tokens
    assert reader.explain("the one in her", " on the line", "keep_end").tokens == whole[-4:]
    with pytest.raises(ItemTooLong):
        reader.explain("the one in her", " on the line")


def test_rules_over_text_and_over_ids(tmp_path: Path) -> None:
    manifest = Manifest(kind="rules", transform="rule", max_tokens=8)
    (tmp_path / "rules.json").write_text('{"rules": [{"type": "length", "unit": "words", "max": 3}]}')
    over_text = RulesEncoder(read_rules(tmp_path), manifest)
    assert over_text.explain("one", "two", None) == Reading(("one", "two"), (), 6, "refuse")
    cut = over_text.explain("a prompt", "two", "keep_end")
    assert (cut.texts, cut.num_tokens) == (("rompt", "two"), 11)
    (tmp_path / "rules.json").write_text('{"rules": [{"type": "token_id_share", "modulus": 2, "residue": 0}]}')
    over_ids = RulesEncoder(read_rules(tmp_path), manifest)
    reading = over_ids.explain((1, 2), (3,), None)
    assert [(token.id, token.part) for token in reading.tokens] == [(1, "prompt"), (2, "prompt"), (3, "completion")]
