"""A critic starts from a reward model that reads what the policy reads, and from nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_models import make_checkpoint, make_tokenizer
from tiny_policies import make_config, save_policy
from torch import device

from ppo_client.ppo.errors import ConfigError
from ppo_client.ppo.models.reward_trunk import check_same_tokenizer, load_reward_model
from ppo_client.ppo.models.run_models import load_models


def test_a_decoder_only_classifier_with_one_label(tmp_path: Path) -> None:
    found = load_reward_model(str(make_checkpoint(tmp_path, "qwen2")), "float32", is_encoder_decoder=False)
    assert type(found.model).__name__ == "Qwen2ForSequenceClassification"
    assert (found.score.in_features, found.score.out_features) == (32, 1)
    assert not len(found.before_score)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("llama", {"num_labels": 2}, "has 2 labels"),
        ("bert", {}, "BertForSequenceClassification: this policy's critic can start from a decoder-only"),
    ],
)
def test_other_classifiers(tmp_path: Path, family: str, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_reward_model(str(make_checkpoint(tmp_path, family, **options)), "float32", is_encoder_decoder=False)


def test_places_that_hold_no_reward_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"critic\.init: .* is not a model directory"):
        load_reward_model(str(tmp_path), "float32", is_encoder_decoder=False)
    with pytest.raises(ConfigError, match=r"lacks score\.weight: it is no trained reward model"):
        load_reward_model(str(save_policy(tmp_path, "llama")), "float32", is_encoder_decoder=False)


def test_tokenizers_are_compared() -> None:
    tokenizer, other = make_tokenizer(), make_tokenizer()
    check_same_tokenizer("rm", tokenizer, other)
    check_same_tokenizer("rm", None, None)
    other.add_tokens(["more"])
    with pytest.raises(ConfigError, match="the tokenizer of rm is not the policy's"):
        check_same_tokenizer("rm", tokenizer, other)
    with pytest.raises(ConfigError, match="the policy has a tokenizer and the reward model has none"):
        check_same_tokenizer("rm", tokenizer, None)


def test_it_must_know_the_policys_tokens_and_read_as_it_does(tmp_path: Path) -> None:
    reward = make_checkpoint(tmp_path / "reward", "llama", vocab_size=100)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (reward / name).unlink()
    critic = {"kind": "separate", "init": str(reward)}
    save_policy(tmp_path / "policy", "llama")
    with pytest.raises(ConfigError, match="it knows 100 tokens, and the policy writes 269"):
        load_models(make_config(tmp_path, critic=critic), None, device("cpu"))
    save_policy(tmp_path / "policy", "t5")
    with pytest.raises(ConfigError, match="can start from an encoder-decoder classifier"):
        load_models(make_config(tmp_path, critic=critic), None, device("cpu"))
