"""What is inferred from a folder without a manifest, and what must be said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from tiny_models import CHAT_TEMPLATE, EOS_ID
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from rm_server.backends.plain_folder import infer_manifest
from rm_server.errors import ArtifactUnreadable, UnsupportedArtifact


@pytest.mark.parametrize(
    ("family", "max_tokens", "append_eos"),
    [
        ("bert", 128, False),
        ("roberta", 129, False),  # 130 positions, and those up to the pad id are reserved
        ("deberta_v2", 128, False),
        ("modernbert", 256, False),
        ("gpt2", 256, True),
        ("mistral", 256, True),
        ("gemma3", 256, True),
    ],
)
def test_limits_and_eos_come_from_the_architecture(
    tmp_path: Path, family: str, max_tokens: int, append_eos: bool
) -> None:
    manifest = infer_manifest(tiny_models.make_checkpoint(tmp_path, family))
    assert (manifest.max_tokens, manifest.append_eos) == (max_tokens, append_eos)
    assert (manifest.kind, manifest.template) == ("sequence_classification", "{prompt}{completion}")
    assert (manifest.truncation, manifest.label_index, manifest.transform) == ("refuse", 0, "raw_logit")


def test_the_smaller_limit_of_tokenizer_and_positions_holds(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "llama")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["model_max_length"] > 1e29, "a tokenizer without a limit says so by a huge number"
    for said, expected in ((100, 100), (1000, 256), (1e30, 256)):
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": said}))
        assert infer_manifest(folder).max_tokens == expected


def test_where_nothing_says_a_limit_it_must_be_given(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "llama")
    (folder / "config.json").write_text('{"model_type": "bloom", "num_labels": 1}')  # has no table of positions
    with pytest.raises(UnsupportedArtifact, match="says how long an item may be; give max_tokens"):
        infer_manifest(folder)
    assert infer_manifest(folder, max_tokens=512).max_tokens == 512


def test_an_eos_that_is_padding_or_added_anyway_is_not_appended(tmp_path: Path) -> None:
    padding = tiny_models.make_checkpoint(tmp_path / "padding", "gpt2", pad_token_id=EOS_ID)
    assert not infer_manifest(padding).append_eos
    adding = tiny_models.make_checkpoint(tmp_path / "adding", "gpt2")
    tokenizer = json.loads((adding / "tokenizer.json").read_text())
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<eos>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<eos>": {"id": "<eos>", "ids": [EOS_ID], "tokens": ["<eos>"]}},
    }
    (adding / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert not infer_manifest(adding).append_eos


def test_an_eos_follows_where_there_is_one_and_the_last_token_is_scored(tmp_path: Path) -> None:
    decoder = tiny_models.make_checkpoint(tmp_path / "decoder", "llama")
    encoder = tiny_models.make_checkpoint(tmp_path / "encoder", "bert")
    tokenizer = tiny_models.make_tokenizer()
    for folder in (decoder, encoder):
        tokenizer.save_pretrained(folder)
    assert infer_manifest(decoder).append_eos
    assert not infer_manifest(encoder).append_eos, "its head reads the first token"
    tokenizer.eos_token = None
    tokenizer.save_pretrained(decoder)
    assert not infer_manifest(decoder).append_eos


def test_an_eos_follows_in_an_alphabet_without_letters(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "llama")
    digits = Tokenizer(models.BPE({"<pad>": 0, "<eos>": 1, "7": 2}, []))
    PreTrainedTokenizerFast(tokenizer_object=digits, eos_token="<eos>", pad_token="<pad>").save_pretrained(folder)
    assert infer_manifest(folder).append_eos


def test_padding_is_trimmed_where_it_is_written(tmp_path: Path) -> None:
    def trims(family: str, template: str | None = None, **options: Any) -> bool:
        folder = tiny_models.make_checkpoint(tmp_path / str(len(list(tmp_path.iterdir()))), family, **options)
        return infer_manifest(folder, template=template).trim_padding

    assert trims("llama", pad_token_id=EOS_ID)
    writes_pad = CHAT_TEMPLATE.replace("<eos>", "<pad>")
    assert trims("llama", chat_template=writes_pad)
    assert not trims("llama", "{completion}", chat_template=writes_pad)
    assert not trims("llama", chat_template=CHAT_TEMPLATE)
    assert not trims("llama")
    assert not trims("llama", pad_token_id=None)
    assert not trims("llama", pad_token_id=-1)
    assert not trims("bert", chat_template=writes_pad), "its head reads the first token"


def test_a_chat_template_is_used(tmp_path: Path) -> None:
    manifest = infer_manifest(tiny_models.make_checkpoint(tmp_path, "llama", chat_template=CHAT_TEMPLATE))
    assert (manifest.template, manifest.append_eos) == ("chat", False)


def test_what_is_said_wins(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "llama", chat_template=CHAT_TEMPLATE)
    manifest = infer_manifest(
        folder, template="{completion}", max_tokens=7, truncation="keep_end", append_eos=True, label_index=0
    )
    assert (manifest.template, manifest.max_tokens, manifest.truncation, manifest.append_eos) == (
        "{completion}",
        7,
        "keep_end",
        True,
    )
    encoder = tiny_models.make_checkpoint(tmp_path / "bert", "bert")
    with pytest.raises(UnsupportedArtifact, match="has no EOS token"):
        infer_manifest(encoder, append_eos=True)


def test_a_classifier_s_label_must_be_said(tmp_path: Path) -> None:
    names = {0: "bad", 1: "Good"}
    folder = tiny_models.make_checkpoint(
        tmp_path, "bert", num_labels=2, id2label=names, label2id={name: index for index, name in names.items()}
    )
    with pytest.raises(UnsupportedArtifact, match=r"2 labels \(0 bad, 1 Good\): .* whose logit is the score\.$"):
        infer_manifest(folder)
    for label in (1, "1", "good", "Good"):
        assert infer_manifest(folder, label_index=label).label_index == 1
    for label in (2, "2", "²", "fair", -1):
        with pytest.raises(UnsupportedArtifact, match=r"it has 0 bad, 1 Good"):
            infer_manifest(folder, label_index=label)


def test_a_model_without_a_head_must_be_trained_first(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "bert", num_labels=2)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertModel"]}))
    with pytest.raises(UnsupportedArtifact, match="names BertModel: what has no head must be trained first"):
        infer_manifest(folder)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ArtifactUnreadable, match=r"has no config\.json; name a version's folder"):
        infer_manifest(tmp_path)
    with pytest.raises(ArtifactUnreadable, match="nowhere is no folder; name a version's folder"):
        infer_manifest(tmp_path / "nowhere")
    folder = tiny_models.make_checkpoint(tmp_path / "llama", "llama")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ArtifactUnreadable, match="has no tokenizer"):
        infer_manifest(folder)
    (folder / "config.json").write_text('{"model_type": "never_heard_of"}')
    with pytest.raises(UnsupportedArtifact, match="never_heard_of"):
        infer_manifest(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ArtifactUnreadable, match="cannot be read"):
        infer_manifest(folder)


def test_a_broken_tokenizer_is_unreadable(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "llama")
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": 7}')
    with pytest.raises(ArtifactUnreadable, match="tokenizer"):
        infer_manifest(folder)


def test_an_architecture_without_classifier_is_refused(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "llama")
    (folder / "config.json").write_text('{"model_type": "vit", "num_labels": 1}')
    with pytest.raises(UnsupportedArtifact, match="no sequence classification"):
        infer_manifest(folder)
