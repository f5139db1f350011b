"""Pairs become the ids that serving makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models

from rm_server.backends.loading import infer_manifest, load_encoder
from rm_server.registry.manifest import TruncationRule
from rm_server.training.data_files import BadData
from rm_server.training.encoding import encode_pairs
from rm_server.training.preferences import Preference

PAIRS = [
    Preference("Why?", " Because it is so.", " No.", "g", place="f:1"),
    Preference("Why?", " No.", " Who knows, who knows, who knows?", "g", place="f:2"),
]


@pytest.mark.parametrize(
    ("family", "template"), [("bert", "pair"), ("roberta", "pair"), ("gpt2", None), ("llama", None)]
)
def test_ids_are_the_encoders(tmp_path: Path, family: str, template: str | None) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, family)
    manifest = infer_manifest(folder, template=template)
    encoder = load_encoder(folder, manifest)
    encoded = encode_pairs(encoder, PAIRS, truncation="refuse", shows_progress=False)
    for row, pair in zip(encoded.dataset, PAIRS, strict=True):
        for side, completion in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            item = encoder.encode(pair.prompt, completion)
            assert row[f"{side}_ids"] == item.ids.tolist()
            if item.type_ids is not None:
                assert row[f"{side}_type_ids"] == item.type_ids.tolist()
    assert ("chosen_type_ids" in encoded.dataset.column_names) == (family == "bert")
    assert encoded.num_texts == 3
    assert encoded.lengths == tuple(max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in encoded.dataset)
    ends = {row[side][-1] for row in encoded.dataset for side in ("chosen_ids", "rejected_ids")}
    assert encoded.last_ids == ends
    assert (tiny_models.EOS_ID in ends) == manifest.append_eos


def test_too_long_texts_are_refused_or_cut_as_the_rule_says(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "bert")
    encoder = load_encoder(folder, infer_manifest(folder, max_tokens=16))
    with pytest.raises(BadData, match=r"2 of 4 texts are too long, the first: f:1 \(chosen\).*--truncation"):
        encode_pairs(encoder, PAIRS, truncation="refuse", shows_progress=False)
    encoder = load_encoder(folder, infer_manifest(folder, max_tokens=16, truncation="keep_start"))
    encoded = encode_pairs(encoder, PAIRS, truncation="keep_start", shows_progress=False)
    assert encoded.num_truncated == 2
    assert max(encoded.lengths) == 16


@pytest.mark.parametrize(
    ("rule", "advice"),
    [("keep_start", r"prompts alone .* keep_end, or a larger --max-tokens"), ("keep_end", r"\. Give a larger --max-t")],
)
def test_what_cannot_be_cut_enough_is_told_what_would_help(tmp_path: Path, rule: TruncationRule, advice: str) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "bert")
    manifest = infer_manifest(folder, max_tokens=4, truncation=rule, template="A long question: {prompt}{completion}")
    with pytest.raises(BadData, match=advice):
        encode_pairs(load_encoder(folder, manifest), PAIRS, truncation=rule, shows_progress=False)


def test_what_cannot_be_encoded_is_named(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "bert")
    pairs = [Preference((1, 2), (3, 10**6), (4,), "g", place="f:9")]
    with pytest.raises(BadData, match="f:9: `chosen` cannot be encoded"):
        encode_pairs(load_encoder(folder, infer_manifest(folder)), pairs, truncation="refuse", shows_progress=False)
