"""The base model: what gets a fresh head, what is refused, and where its pad id points."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from rm_server.errors import ArtifactUnreadable, InvalidRequest, UnsupportedArtifact, WeightsMismatch
from rm_server.training.base_model import check_positions, choose_pad_id, disable_dropout, find_base, load_base


def backbone(folder: Path, family: str) -> Path:
    """A checkpoint without a head, as an encoder or a language model is published."""
    tiny_models.make_checkpoint(folder, family)
    AutoModel.from_pretrained(folder).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("family", "head"), [("bert", "classifier"), ("gpt2", "score"), ("roberta", "classifier")])
def test_a_backbone_gets_a_head_that_the_seed_decides(tmp_path: Path, family: str, head: str) -> None:
    folder = backbone(tmp_path, family)
    model, _, fresh = load_base(folder, seed=3)
    assert fresh
    assert all(name.startswith(head) or "pooler" in name for name in fresh)
    again, other = load_base(folder, seed=3)[0], load_base(folder, seed=4)[0]

    def weights(of: torch.nn.Module) -> torch.Tensor:
        return torch.cat([of.get_parameter(name).flatten() for name in fresh if name.endswith("weight")])

    assert torch.equal(weights(model), weights(again))
    assert not torch.equal(weights(model), weights(other))
    assert model.config.num_labels == 1


def test_a_reward_model_keeps_its_head(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "bert")
    model, _, fresh = load_base(folder, seed=0)
    assert fresh == []
    assert torch.equal(model.classifier.weight, load_file(folder / "model.safetensors")["classifier.weight"])


def test_a_classifier_of_several_labels_gets_a_new_head(tmp_path: Path) -> None:
    model, _, fresh = load_base(tiny_models.make_checkpoint(tmp_path, "bert", num_labels=3), seed=0)
    assert fresh == ["classifier.bias", "classifier.weight"]
    assert model.classifier.out_features == 1


def test_a_backbone_with_holes_is_refused(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "bert")
    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsMismatch, match=r"lacks weights of the backbone \(bert\.encoder\.layer\.1\.output"):
        load_base(folder, seed=0)


@pytest.mark.parametrize(("family", "limit"), [("bert", 128), ("roberta", 129), ("gpt2", 256)])
def test_items_longer_than_the_position_table_are_refused(family: str, limit: int) -> None:
    model = tiny_models.make_model(family)
    check_positions(model, limit)
    with pytest.raises(InvalidRequest, match=f"more than the {limit} positions"):
        check_positions(model, limit + 1)


def test_computed_positions_have_no_end() -> None:
    check_positions(tiny_models.make_model("llama"), 100_000)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = tiny_models.make_checkpoint(tmp_path, "bert")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedArtifact, match="pickle"):
        load_base(folder, seed=0)


def test_a_name_that_is_nowhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ArtifactUnreadable, match="'nobody/nothing' is no folder"):
        find_base("nobody/nothing")


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "modernbert", "deberta_v2"])
def test_without_dropout_training_and_evaluation_give_the_same(family: str) -> None:
    settings = {"llama": {"attention_dropout": 0.5}, "modernbert": {"attention_dropout": 0.5, "mlp_dropout": 0.5}}
    model = tiny_models.make_model(family, **settings.get(family, {}))
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        model.train()
        assert not torch.equal(model(input_ids=ids).logits, expected)
        disable_dropout(model)
        torch.testing.assert_close(model(input_ids=ids).logits, expected)


def test_the_pad_id_is_none_that_a_text_ends_with() -> None:
    model, tokenizer = tiny_models.make_model("gpt2"), tiny_models.make_tokenizer()
    assert choose_pad_id(model, tokenizer, {tiny_models.EOS_ID}) == tiny_models.PAD_ID
    tokenizer.pad_token = tiny_models.EOS
    model.config.pad_token_id = tiny_models.EOS_ID
    assert choose_pad_id(model, tokenizer, {tiny_models.EOS_ID}) not in {tiny_models.EOS_ID, None}
    assert choose_pad_id(model, tokenizer, {0, tiny_models.EOS_ID, 2}) == 3
    tokenizer.add_special_tokens({"pad_token": "<pad beyond the embedding>"})
    model.config.pad_token_id = -1
    assert choose_pad_id(model, tokenizer, {tiny_models.EOS_ID}) == 0
