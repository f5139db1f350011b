"""Preference pairs and their division by prompt."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rm_server.backends.items import ChatMessage
from rm_server.training.data_files import BadData
from rm_server.training.preferences import (
    Preference,
    check_covered,
    read_preferences,
    read_split,
    select,
    split_by_group,
    subset_of_groups,
)


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pair(prompt: str, group: str | None = None, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": "yes", "rejected": "no", **({"group": group} if group else {}), **more}


def test_pairs_keep_their_fields(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", pair("p", "g", subset="easy", margin=0.5))
    assert read_preferences(path) == [Preference("p", "yes", "no", "g", "easy", f"{path}:1")]


def test_without_groups_the_prompt_is_the_group(tmp_path: Path) -> None:
    one, two, three = read_preferences(write(tmp_path / "a.jsonl", pair("p"), pair("q"), pair("p")))
    assert one.group == three.group != two.group


def test_groups_that_share_a_prompt_become_one(tmp_path: Path) -> None:
    rows = [pair("p", "c"), pair("q", "c"), pair("q", "b"), pair("r", "b"), pair("s", "a")]
    assert [p.group for p in read_preferences(write(tmp_path / "a.jsonl", *rows))] == ["b", "b", "b", "b", "a"]


def test_conversations_that_begin_alike_are_divided(tmp_path: Path) -> None:
    def talk(*contents: str) -> list[dict[str, str]]:
        return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]

    path = write(tmp_path / "a.jsonl", {"chosen": talk("hi", "yes", "why?", "so"), "rejected": talk("hi", "no")})
    (read,) = read_preferences(path)
    assert read.prompt == (ChatMessage("user", "hi"),)
    assert read.chosen == (ChatMessage("assistant", "yes"), ChatMessage("user", "why?"), ChatMessage("assistant", "so"))
    assert read.rejected == (ChatMessage("assistant", "no"),)
    assert read.lengths == (9, 2)


def test_a_prompt_that_the_conversations_begin_with_is_read_once(tmp_path: Path) -> None:
    """As in UltraFeedback's pairs: `prompt` is the user's turn, and both conversations have it, too."""
    asked = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("Hello.", "What?")]
    whole = {"chosen": asked + answers[0], "rejected": asked + answers[1]}
    expected = read_preferences(write(tmp_path / "a.jsonl", whole))
    for prompt in ("Hi", asked):
        assert read_preferences(write(tmp_path / "b.jsonl", whole | {"prompt": prompt})) == [
            replace(expected[0], place=f"{tmp_path / 'b.jsonl'}:1")
        ]
    apart = {"prompt": asked, "chosen": answers[0], "rejected": answers[1]}
    assert read_preferences(write(tmp_path / "a.jsonl", apart)) == expected


def test_an_answer_that_repeats_the_prompt_is_an_answer(tmp_path: Path) -> None:
    begin = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]
    row = {"prompt": "Hi", "chosen": [*begin, {"role": "user", "content": "Bye"}], "rejected": begin}
    (read,) = read_preferences(write(tmp_path / "a.jsonl", row))
    assert read.prompt == (ChatMessage("user", "Hi"),)
    assert read.rejected == (ChatMessage("assistant", "Hi"),)


def test_texts_that_all_begin_with_their_prompt_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    twice = {"prompt": "Hi", "chosen": "Hi there", "rejected": "Hi you"}
    with caplog.at_level(logging.WARNING):
        read_preferences(write(tmp_path / "a.jsonl", twice, pair("p")))
        assert caplog.text == ""
        assert read_preferences(write(tmp_path / "a.jsonl", twice))[0].chosen == "Hi there"
    assert "every completion begins with its prompt" in caplog.text


def test_dialogues_in_one_text_are_divided_before_the_last_answer_that_both_begin(tmp_path: Path) -> None:
    begin = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:"
    rows = [
        {"chosen": f"{begin} So it is.", "rejected": f"{begin} So what?"},
        {"chosen": f"{begin} No.\n\nHuman: Oh\n\nAssistant: Yes.", "rejected": f"{begin} Never."},
    ]
    path = write(tmp_path / "a.jsonl", *rows)
    read = read_preferences(path)
    assert [(pair.prompt, pair.rejected) for pair in read] == [(begin, " So what?"), (begin, " Never.")]
    for row, one in zip(rows, read, strict=True):
        assert one.prompt + one.chosen == row["chosen"]  # what the default template joins
    assert read[0].group == read[1].group


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"prompt": "p", "chosen": "yes"}, ":1 has no `rejected`"),
        ({"chosen": "yes", "rejected": "no"}, ":1 has no `prompt`"),
        ({"chosen": "Human: a\n\nAssistant: b", "rejected": "c"}, "only the answers into `chosen`"),
        ({"chosen": "a\n\nAssistant: b", "rejected": "a\n\nAssistant:"}, "are not two dialogues"),
        (
            {"chosen": [{"role": "user", "content": "a"}], "rejected": [{"role": "user", "content": "b"}]},
            "not two conversations that begin alike",
        ),
        (
            {
                "prompt": "c",
                "chosen": [{"role": "user", "content": "a"}],
                "rejected": [{"role": "user", "content": "a"}],
            },
            "begins with a user's turn, so they are whole conversations",
        ),
        (
            {
                "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "a"}],
                "chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
                "rejected": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}],
            },
            "`prompt` is not what both begin with",
        ),
        (
            {
                "prompt": [{"role": "user", "content": "a"}],
                "chosen": [{"role": "assistant", "content": "b"}],
                "rejected": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}],
            },
            "`prompt` is not what both begin with",
        ),
        (
            {
                "prompt": "a",
                "chosen": [{"role": "user", "content": "a"}],
                "rejected": [{"role": "user", "content": "a"}],
            },
            "nothing after the prompt",
        ),
    ],
)
def test_a_row_that_is_no_pair_is_refused(tmp_path: Path, row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadData, match=complaint):
        read_preferences(write(tmp_path / "a.jsonl", row))


def test_pairs_of_the_same_completion_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    same = {"prompt": "p", "chosen": "yes", "rejected": "yes"}
    with caplog.at_level(logging.WARNING):
        assert len(read_preferences(write(tmp_path / "a.jsonl", same, pair("p")))) == 1
    assert "left out 1 pairs" in caplog.text
    unanswered = dict.fromkeys(("chosen", "rejected"), "\n\nHuman: Hi\n\nAssistant:")
    assert len(read_preferences(write(tmp_path / "a.jsonl", unanswered, pair("p")))) == 1
    with pytest.raises(BadData, match="no pairs of different completions"):
        read_preferences(write(tmp_path / "b.jsonl", same))


@given(st.sets(st.text(max_size=5), min_size=2, max_size=60), st.floats(0, 0.9), st.integers(0, 5))
@settings(max_examples=60)
def test_a_split_loses_nothing_and_shares_nothing(groups: set[str], share: float, seed: int) -> None:
    try:
        split = split_by_group(groups, share, seed)
    except BadData:
        assert max(1, round(share * len(groups))) >= len(groups)
        return
    assert split.train | split.held_out == groups
    assert not split.train & split.held_out
    assert split.train
    assert len(split.held_out) == (max(1, round(share * len(groups))) if share > 0 else 0)


def test_a_split_is_the_same_again_and_another_with_another_seed() -> None:
    groups = [f"g{i}" for i in range(40)]
    first = split_by_group(groups, 0.25, seed=1)
    assert split_by_group(reversed(groups), 0.25, seed=1) == first
    assert split_by_group(groups, 0.25, seed=2) != first
    assert first.held_out < split_by_group(groups, 0.5, seed=1).held_out


def test_smaller_subsets_are_parts_of_larger_ones() -> None:
    groups = [f"g{i}" for i in range(40)]
    quarter, half = subset_of_groups(groups, 0.25, seed=3), subset_of_groups(groups, 0.5, seed=3)
    assert quarter < half
    assert (len(quarter), len(half)) == (10, 20)
    assert subset_of_groups(groups, 1.0, seed=3) == set(groups)


def test_a_split_file_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    split = split_by_group("abcdefgh", 0.25, seed=0)
    path.write_text(split.to_json())
    parts = read_split(path)
    assert (parts["train"], parts["held_out"]) == (split.train, split.held_out)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "cannot be read as a split"),
        ("[]", "is not a JSON object"),
        ('{"train": ["a"]}', "lacks the list held_out"),
        ('{"train": ["a", "b"], "held_out": ["b"]}', "1 groups both in train and in held_out, for example 'b'"),
    ],
)
def test_a_wrong_split_file_is_refused(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(content)
    with pytest.raises(BadData, match=complaint):
        read_split(path)


def test_a_split_of_other_data_is_noticed(tmp_path: Path) -> None:
    pairs = read_preferences(write(tmp_path / "a.jsonl", pair("p", "a"), pair("q", "x")))
    assert [p.group for p in select(pairs, {"a"})] == ["a"]
    with pytest.raises(BadData, match=r"a\.jsonl:2: the group 'x' is in no part"):
        check_covered(pairs, {"train": frozenset("a"), "held_out": frozenset("b")}, tmp_path / "split.json")
