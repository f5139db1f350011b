"""Models are loaded as they are, and what does not fit together is refused before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from tiny_models import EOS_ID, PAD_ID, VOCAB_SIZE, make_tokenizer
from tiny_policies import FakeRewards, make_config, make_language_model, save_policy
from torch import nn
from transformers import BertConfig, modeling_utils

from ppo_client.ppo.config import RolloutConfig
from ppo_client.ppo.errors import ConfigError
from ppo_client.ppo.models.build import check_fits, load_language_model, load_policy, load_tokenizer, sampling_rule
from ppo_client.ppo.models.sequences import Prompts, Sequences
from ppo_client.ppo.prompts import Prompt
from ppo_client.ppo.start import start_run


def test_a_policy_is_its_checkpoint_with_a_faster_activation(tmp_path: Path) -> None:
    save_policy(tmp_path, "gpt2")
    policy = load_policy(str(tmp_path), "float32", RolloutConfig(), load_tokenizer(str(tmp_path)))
    assert (policy.pad_id, policy.rule.eos_ids) == (PAD_ID, (EOS_ID,))
    assert any(isinstance(module, nn.GELU) for module in policy.modules())
    ids = torch.arange(10, 30).view(2, 10)
    with torch.no_grad():
        expected = make_language_model("gpt2").eval()(input_ids=ids).logits
        assert torch.allclose(policy.model(input_ids=ids).logits, expected, atol=1e-5)


def test_padded_responses_to_prompts_without_padding_raise_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_policy(tmp_path, "gpt2")
    policy = load_policy(str(tmp_path), "float32", RolloutConfig(), load_tokenizer(str(tmp_path)))
    warnings: list[str] = []
    monkeypatch.setattr(modeling_utils.logger, "warning_once", warnings.append)
    response_ids = torch.tensor([[9, 10, 11, 12], [9, EOS_ID, PAD_ID, PAD_ID]])
    lengths = torch.tensor([[4], [2]])
    policy(Sequences(Prompts.collate([[5, 6], [7, 8]], PAD_ID), response_ids, torch.arange(4) < lengths))
    assert warnings == []


def test_places_that_hold_no_policy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a model directory"):
        load_language_model(str(tmp_path), "float32")
    with pytest.raises(ConfigError, match="there is no directory"):
        load_language_model(str(tmp_path / "none"), "float32")
    BertConfig(num_hidden_layers=1, is_encoder_decoder=True).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_language_model(str(tmp_path), "float32")


def test_a_classifier_is_no_policy(tmp_path: Path) -> None:
    tiny_models.make_model("qwen2", tie_word_embeddings=False).save_pretrained(tmp_path)
    said = "lacks lm_head.weight: its files are of a Qwen2ForSequenceClassification, and the policy is to be a whole"
    with pytest.raises(ConfigError, match=said):
        load_language_model(str(tmp_path), "float32")


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    model = make_language_model()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_language_model(str(tmp_path), "float32")


def test_a_directory_without_tokenizer(tmp_path: Path) -> None:
    save_policy(tmp_path, with_tokenizer=False)
    assert load_tokenizer(str(tmp_path)) is None
    assert load_policy(str(tmp_path), "float32", RolloutConfig(), None).pad_id == EOS_ID


def test_eos_comes_from_model_and_tokenizer() -> None:
    model = make_language_model()
    model.generation_config.eos_token_id = [EOS_ID, 9, VOCAB_SIZE + 5]
    assert sampling_rule(model, make_tokenizer(), RolloutConfig(temperature=0.7)).eos_ids == (EOS_ID, 9)
    model.generation_config.eos_token_id = None
    assert sampling_rule(model, make_tokenizer(), RolloutConfig()).eos_ids == (EOS_ID,)
    with pytest.raises(ConfigError, match="names an EOS token"):
        sampling_rule(model, None, RolloutConfig())
    fixed = RolloutConfig(max_response_tokens=5, min_response_tokens=5)
    assert sampling_rule(model, None, fixed).eos_ids == ()


def test_lengths_and_vocabulary_are_checked(tmp_path: Path) -> None:
    save_policy(tmp_path)
    policy = load_policy(str(tmp_path), "float32", RolloutConfig(), None)

    def prompt(*ids: int) -> Prompt:
        return Prompt(list(ids), list(ids), "")

    check_fits(policy, [prompt(1), prompt(*range(200))], 56)
    with pytest.raises(ConfigError, match="200 tokens, a response up to 57, and the policy 256 positions"):
        check_fits(policy, [prompt(1), prompt(*range(200))], 57)
    with pytest.raises(ConfigError, match=f"token id {VOCAB_SIZE}, and the policy {VOCAB_SIZE} tokens"):
        check_fits(policy, [prompt(VOCAB_SIZE)], 8)


@pytest.mark.parametrize("setting", ["policy.reference", "critic.model"])
def test_reference_and_critic_know_what_the_policy_can_write(folder: Path, setting: str) -> None:
    small, (section, name) = str(save_policy(folder / "small", vocab_size=100)), setting.split(".")
    sections: dict[str, dict[str, Any]] = {"critic": {"kind": "separate"}}
    sections.setdefault(section, {})[name] = small
    config = make_config(folder, **sections)
    with pytest.raises(ConfigError, match=rf"{setting}: it knows 100 tokens, and the policy writes {VOCAB_SIZE}"):
        start_run(config, FakeRewards())


@pytest.mark.parametrize("setting", ["policy.reference", "critic.model"])
def test_reference_and_critic_have_positions_for_what_the_policy_writes(folder: Path, setting: str) -> None:
    save_policy(folder / "short", n_positions=13)  # the longest prompt has 8 tokens
    section, name = setting.split(".")
    sections: dict[str, dict[str, Any]] = {"critic": {"kind": "separate"}, "rollout": {"max_response_tokens": 5}}
    sections.setdefault(section, {})[name] = str(folder / "short")
    start_run(make_config(folder, **sections), FakeRewards())
    sections["rollout"] = {"max_response_tokens": 6}
    sections["train"] = {"output": str(folder / "other")}
    with pytest.raises(ConfigError, match=rf"8 tokens, a response up to 6, and {setting} 13 positions"):
        start_run(make_config(folder, **sections), FakeRewards())


def test_an_encoder_decoder_needs_room_for_the_longer_of_the_two(tmp_path: Path) -> None:
    save_policy(tmp_path, "bart")  # 64 positions
    policy = load_policy(str(tmp_path), "float32", RolloutConfig(), None)
    prompts = [Prompt(list(range(60)), [], "")]
    check_fits(policy, prompts, 64)
    with pytest.raises(ConfigError, match="60 tokens, a response up to 65, and the policy 64 positions"):
        check_fits(policy, prompts, 65)
    save_policy(tmp_path / "t5", "t5")
    check_fits(load_policy(str(tmp_path / "t5"), "float32", RolloutConfig(), None), prompts, 1000)
