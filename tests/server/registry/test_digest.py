"""The digest follows what decides the scores, and only that; another program computes the same."""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from rm_server.errors import ArtifactUnreadable
from rm_server.registry.digest import Contents, canonical_manifest, contents_of, digest_of
from rm_server.registry.manifest import GoldenExample, Manifest, read_manifest

from .conftest import MakeFolder

PLAIN = Manifest(kind="sequence_classification", max_tokens=128)


def test_the_recipe_in_a_program_of_its_own(checkpoint: MakeFolder) -> None:
    """Written down from the docstring, with nothing of ours but the folder."""
    folder = checkpoint()
    content = json.loads((folder / "reward_model.json").read_text())
    kept = {"kind": content["kind"], "max_tokens": content["max_tokens"]}
    text = "rm-version 1\nmanifest " + json.dumps(kept, sort_keys=True, separators=(",", ":")) + "\n"
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        printed = subprocess.run(["sha256sum", folder / name], capture_output=True, text=True, check=True).stdout
        text += f"file {printed.split()[0]} {(folder / name).stat().st_size} {name}\n"
    assert digest_of(folder, read_manifest(folder)) == hashlib.sha256(text.encode()).hexdigest()


def test_a_digest_never_changes_between_releases(rules_folder: MakeFolder) -> None:
    manifest = Manifest(kind="rules", transform="rule", template="Q: {prompt}\nA: {completion}\u2028é")
    digest = digest_of(rules_folder("even"), manifest)
    assert digest == "6ea2799ebc50e7d2e97f937037e58a21f92b844660d8c94d1379ec09e4514829"


@pytest.mark.parametrize(
    "change",
    [
        {"template": "{prompt}\n{completion}"},
        {"append_eos": True},
        {"trim_padding": True},
        {"add_special_tokens": False},
        {"max_tokens": 64},
        {"truncation": "keep_end"},
        {"label_index": 1},
        {"transform": "sigmoid"},
        {"precision": "int8"},
    ],
)
def test_every_field_that_decides_the_score_counts(checkpoint: MakeFolder, change: dict[str, object]) -> None:
    folder = checkpoint()
    assert digest_of(folder, replace(PLAIN, **change)) != digest_of(folder, PLAIN)


def test_the_parametrisation_above_is_complete() -> None:
    reading = {"template", "append_eos", "trim_padding", "add_special_tokens", "max_tokens", "truncation"}
    assert set(PLAIN.score_deciding()) - {"kind"} == {*reading, "label_index", "transform", "precision"}


def test_golden_examples_tolerances_and_papers_do_not_count(checkpoint: MakeFolder) -> None:
    folder = checkpoint()
    before = digest_of(folder, PLAIN)
    (folder / "README.md").write_text("A model card.")
    (folder / "evaluation.json").write_text("{}")
    (folder / "reward_model.json").write_text("other")
    golden = (GoldenExample("p", "c", 0.5),)
    assert digest_of(folder, replace(PLAIN, golden=golden, tolerance={"fp32": 1.0})) == before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_every_byte_of_every_file_counts(checkpoint: MakeFolder, name: str) -> None:
    folder = checkpoint()
    before = digest_of(folder, PLAIN)
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    assert digest_of(folder, PLAIN) != before


def test_a_file_more_counts(checkpoint: MakeFolder) -> None:
    folder = checkpoint()
    before = digest_of(folder, PLAIN)
    (folder / "chat_template.jinja").write_text("")
    assert digest_of(folder, PLAIN) != before


def test_the_folder_s_name_does_not_count(checkpoint: MakeFolder) -> None:
    assert digest_of(checkpoint("a"), PLAIN) == digest_of(checkpoint("b"), PLAIN)


def test_a_default_that_is_written_out_is_the_default() -> None:
    assert canonical_manifest(Manifest(kind="rules")) == '{"kind":"rules"}'
    assert canonical_manifest(Manifest(kind="rules", truncation="refuse", label_index=0)) == '{"kind":"rules"}'


def test_contents_read_back_as_they_were_written(checkpoint: MakeFolder) -> None:
    folder = checkpoint()
    (folder / "a b  c.model").write_text("x")
    contents = contents_of(folder, replace(PLAIN, template="{prompt}\n\n{completion}\u2028"))
    assert Contents.from_text(contents.to_text()) == contents
    assert str(contents.files[0].path) == "a b  c.model"


@pytest.mark.parametrize("text", ["", "x", "rm-version 2\nmanifest {}\n", "rm-version 1\nmanifest {}\nfoo a 1 b\n"])
def test_other_texts_are_no_contents(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Contents.from_text(text)


def test_a_file_that_cannot_be_read_is_named(checkpoint: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> tuple[int, str]:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr("rm_server.registry.digest.hash_file", fail)
    with pytest.raises(ArtifactUnreadable, match=r"config\.json cannot be read: .*Input/output error"):
        digest_of(checkpoint(), PLAIN)
