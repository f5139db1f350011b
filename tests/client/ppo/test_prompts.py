"""Prompts of every kind, and messages that name the row that cannot be used."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import CHAT_TEMPLATE, EOS, EOS_ID, make_tokenizer
from tokenizers.processors import TemplateProcessing

from ppo_client.ppo.config import DataConfig, RewardConfig
from ppo_client.ppo.errors import DataError
from ppo_client.ppo.prompts import Prompt, load_prompts
from ppo_client.ppo.rows import read_rows


def write(path: Path, *rows: Any) -> Path:
    text = "\n".join(json.dumps(row) for row in rows) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def load(path: Path, *, reward: RewardConfig | None = None, tokenizer: Any = None, **data: Any) -> list[Prompt]:
    return load_prompts(DataConfig(prompts=str(path), **data), reward or RewardConfig(), tokenizer)


def test_text(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    path = write(tmp_path / "p.jsonl.gz", {"prompt": "the end"}, {"prompt": "zwölf"})
    prompts = load(path, tokenizer=tokenizer, reward=RewardConfig(prompt_template="Q: {prompt}"))
    assert [prompt.text for prompt in prompts] == ["the end", "zwölf"]
    assert [prompt.content for prompt in prompts] == ["Q: the end", "Q: zwölf"]
    assert prompts[0].token_ids == tokenizer("the end")["input_ids"]


def test_a_csv_of_numbers_is_text(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("number,n\n042,1\n1.50,2\n", encoding="utf-8")
    prompts = load(tmp_path / "p.csv", field="number", where="n=2", tokenizer=make_tokenizer())
    assert [prompt.text for prompt in prompts] == ["1.50"]


def test_an_eos_that_the_tokenizer_adds_is_taken_away(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    plain = tokenizer("the end")["input_ids"]
    tokenizer._tokenizer.post_processor = TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, EOS_ID)])
    assert tokenizer("the end")["input_ids"] == [*plain, EOS_ID]
    (prompt,) = load(write(tmp_path / "p.jsonl", {"prompt": "the end"}), tokenizer=tokenizer)
    assert prompt.token_ids == plain


def test_token_ids_need_no_tokenizer(tmp_path: Path) -> None:
    (prompt,) = load(write(tmp_path / "p.jsonl", {"q": [5, 6]}), field="q", reward=RewardConfig(input="token_ids"))
    assert prompt == Prompt([5, 6], [5, 6], "5 6")


def test_token_ids_are_decoded_for_a_reward_that_reads_text(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer("hello")["input_ids"]
    path = write(tmp_path / "p.jsonl", {"prompt": ids})
    assert load(path, tokenizer=tokenizer)[0].content == "hello"
    with pytest.raises(DataError, match="token ids and no tokenizer"):
        load(path)


def test_chat_messages(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    path = write(tmp_path / "p.jsonl", {"prompt": [{"role": "user", "content": "hi"}]})
    with pytest.raises(DataError, match="no chat template"):
        load(path, tokenizer=tokenizer)
    tokenizer.chat_template = CHAT_TEMPLATE
    (prompt,) = load(path, tokenizer=tokenizer)
    assert prompt.content == [{"role": "user", "content": "hi"}]
    assert tokenizer.decode(prompt.token_ids) == "[user] hi<eos>[assistant] "
    assert prompt.text == "user: hi"
    with pytest.raises(DataError, match=r"line 1: .* reward\.prompt_template is for text"):
        load(path, tokenizer=tokenizer, reward=RewardConfig(prompt_template="Q: {prompt}"))
    tokenizer.chat_template = "{{ raise_exception('no system here') }}"
    with pytest.raises(DataError, match=r"line 1: the policy's chat template does not take these .*: no system here"):
        load(path, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "user", "content": "hi", "name": "ann"}, r"has the fields \['content', 'name', 'role'\]"),
        (
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            "has a role of type str and a content of type list",
        ),
    ],
)
def test_messages_that_a_reward_model_cannot_be_sent_are_refused_where_one_is(
    tmp_path: Path, message: Any, says: str
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE.replace("message['content']", "message['content'] | string")
    path = write(
        tmp_path / "p.jsonl", {"prompt": [{"role": "user", "content": "hi", "name": None}]}, {"prompt": [message]}
    )
    with pytest.raises(DataError, match=f"line 2: the prompt, message 0 {says}"):
        load(path, tokenizer=tokenizer)
    assert len(load(path, tokenizer=tokenizer, reward=RewardConfig(input="token_ids"))) == 2
    data = DataConfig(prompts=str(path))
    assert len(load_prompts(data, RewardConfig(), tokenizer, are_scored=False)) == 2


def test_rows_can_be_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": [1], "split": "train"}, {"prompt": [2], "split": "test"})
    reward = RewardConfig(input="token_ids")
    assert [prompt.token_ids for prompt in load(path, where="split=test", reward=reward)] == [[2]]
    with pytest.raises(DataError, match=r"no rows with split=dev: split is 'train', 'test'$"):
        load(path, where="split=dev", reward=reward)


def test_overlong(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": [1, 2, 3]}, {"prompt": [4]})
    reward = RewardConfig(input="token_ids")
    with pytest.raises(DataError, match=r"line 1: 3 tokens, max_prompt_tokens is 2: raise it, or set overlong"):
        load(path, max_prompt_tokens=2, reward=reward)
    assert [p.token_ids for p in load(path, max_prompt_tokens=2, overlong="drop", reward=reward)] == [[4]]
    kept = load(path, max_prompt_tokens=2, overlong="keep_end", reward=reward)
    with pytest.raises(DataError, match="no prompts that fit into 2 tokens"):
        load(write(tmp_path / "long.jsonl", {"prompt": [1, 2, 3]}), max_prompt_tokens=2, overlong="drop", reward=reward)
    assert [(p.token_ids, p.content) for p in kept] == [([2, 3], [2, 3]), ([4], [4])]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "text, chat messages or token ids, and not empty"),
        ([], "not empty"),
        (None, "not empty"),
        ([1, "a"], "not empty"),
        ([True], "not empty"),
        ([{"role": "user"}], "not empty"),
        ([-1], "cannot be negative"),
        ("half \ud83d", "no valid Unicode text"),
    ],
)
def test_prompts_that_are_none(tmp_path: Path, value: Any, message: str) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "fine"}, {"prompt": value})
    with pytest.raises(DataError, match=f"line 2: .*{message}"):
        load(path, tokenizer=make_tokenizer())


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: there is no such file"):
        load(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="line 1: no field 'prompt'; it has text"):
        load(write(tmp_path / "p.jsonl", {"text": "a"}))
    with pytest.raises(DataError, match="needs a tokenizer"):
        load(write(tmp_path / "q.jsonl", {"prompt": "a"}))
    path = tmp_path / "bad.jsonl"
    path.write_text('{"a": 1}\n\n{"a"\n', encoding="utf-8")
    with pytest.raises(DataError, match="line 3: not JSON"):
        list(read_rows(path))
    path.write_text("[1]\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 1: an object is expected, this is list"):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"prompt": "caf\xe9"}\n', "line 1: not JSON in UTF-8"),
        ("a.jsonl.gz", b"plain", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"prompt": "a"}\n' * 1000, mtime=0)[:-20], "cannot be read"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        list(read_rows(tmp_path / name))
