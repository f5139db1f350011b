"""What `reward_model.json` may say, and how it is told that it says something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rm_server.errors import ArtifactUnreadable, UnsupportedArtifact
from rm_server.registry.manifest import FILE_NAME, GoldenExample, Manifest, read_manifest, write_manifest

FULL = Manifest(
    kind="sequence_classification",
    template="Q: {prompt}\nA: {completion}",
    append_eos=True,
    add_special_tokens=False,
    max_tokens=512,
    truncation="keep_end",
    label_index=2,
    transform="sigmoid",
    golden=(GoldenExample("p é", "c", 0.1), GoldenExample((1, 2), (3,), -1e-30)),
    tolerance={"fp32": 1e-4},
)


def write(folder: Path, **content: Any) -> Path:
    (folder / FILE_NAME).write_text(json.dumps(content))
    return folder


def test_a_manifest_reads_back_as_it_was_written(tmp_path: Path) -> None:
    write_manifest(tmp_path, FULL)
    assert read_manifest(tmp_path) == FULL
    assert (tmp_path / FILE_NAME).read_text().endswith("}\n")


def test_what_is_not_said_has_its_default(tmp_path: Path) -> None:
    assert read_manifest(write(tmp_path, kind="rules")) == Manifest(kind="rules")


def test_a_missing_manifest_says_who_writes_it(tmp_path: Path) -> None:
    with pytest.raises(ArtifactUnreadable, match="`rm-server register --home DIR` makes one"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '"rules"', "{}", '{"kind": "rules", "golden": 3}'])
def test_what_is_no_manifest_is_unreadable(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(ArtifactUnreadable, match=r"reward_model\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"kind": "pickle"}, "kind is 'pickle'; known are sequence_classification"),
        ({"truncation": "middle"}, "truncation is 'middle'"),
        ({"transform": "softmax"}, "transform is 'softmax'"),
        ({"template": "{prompt}"}, "has no {completion}"),
        (
            {"template": "Q: {Prompts} A: {completion}"},
            "has {Prompts}, and only {prompt} and {completion} are filled in",
        ),
        ({"template": "{prompt}{ completion }"}, "has { completion }, and only"),
        ({"template": "{prompt}{completions}"}, "did you mean {completion}?"),
        ({"template": "Q: {question} A: {completion}"}, "has {question}, and only"),
        ({"template": 3}, "template is 3; text is expected"),
        ({"append_eos": "no"}, "append_eos is 'no'; true or false is expected"),
        ({"add_special_tokens": 1}, "add_special_tokens is 1; true or false"),
        ({"max_tokens": "128"}, "max_tokens is '128'; a whole number from 0 to 2147483647 is expected"),
        ({"max_tokens": 2**31}, "max_tokens is 2147483648; a whole number from 0 to 2147483647 is expected"),
        ({"max_tokens": -1}, "max_tokens is -1"),
        ({"max_tokens": 12.5}, "max_tokens is 12.5"),
        ({"label_index": True}, "label_index is True"),
        ({"tolerance": {"fp32": "small"}}, "tolerance.fp32 is 'small'"),
        ({"tolerance": {"fp32": -1}}, "tolerance.fp32 is -1"),
        ({"tolerance": {"bf16": float("nan")}}, "tolerance.bf16 is nan"),
        ({"tolerance": {"fp23": 1e-3}}, "tolerance.fp23 is of no precision; known are fp32, bf16"),
        ({"pooling": "cls", "a": 1}, "keys that this version does not know: a, pooling"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedArtifact) as caught:
        read_manifest(write(tmp_path, **{"kind": "rules", **content}))
    assert message in caught.value.message


@pytest.mark.parametrize(
    "example", [{}, 3, {"prompt": "p", "completion": "c"}, {"prompt": 3, "completion": "c", "score": 1}]
)
def test_half_a_golden_example_is_refused(tmp_path: Path, example: Any) -> None:
    with pytest.raises(ArtifactUnreadable, match="a golden example needs prompt, completion, score"):
        read_manifest(write(tmp_path, kind="rules", golden=[example]))


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_golden_score_that_compares_with_nothing_is_refused(tmp_path: Path, score: float) -> None:
    with pytest.raises(UnsupportedArtifact, match="with that nothing is checked"):
        read_manifest(write(tmp_path, kind="rules", golden=[{"prompt": "p", "completion": "c", "score": score}]))


def test_braces_around_no_word_are_text() -> None:
    template = '{"instruction": {}, {prompt}} {{completion}}'
    assert Manifest(kind="sequence_classification", template=template).template == template


@pytest.mark.parametrize(
    ("template", "reads"), [("pair", True), ("chat", True), ("A: {completion}", False), ("{prompt}{completion}", True)]
)
def test_a_template_says_whether_prompts_are_read(template: str, reads: bool) -> None:
    assert Manifest(kind="sequence_classification", template=template).reads_prompt is reads


def test_golden_examples_and_tolerances_do_not_decide_scores() -> None:
    assert set(FULL.score_deciding()) == set(json.loads(FULL.to_json())) - {"golden", "tolerance"}
