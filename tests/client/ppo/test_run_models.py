"""What is trained has gradients and nothing else; what is saved is what comes back, and others can load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSeq2SeqLM
from tiny_models import EOS_ID, PAD_ID, VOCAB_SIZE, make_checkpoint, make_tokenizer
from tiny_policies import (
    ENCODER_DECODERS,
    FakeRewards,
    make_config,
    make_language_model,
    read_jsonl,
    save_id_prompts,
    save_policy,
)
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
)

from ppo_client.ppo import PPOTrainer
from ppo_client.ppo.errors import CheckpointError, ConfigError
from ppo_client.ppo.models.critic import SeparateCritic
from ppo_client.ppo.models.run_models import Models, load_critic, load_models, trained_share
from ppo_client.ppo.models.run_models import save_policy as save_models

CPU = torch.device("cpu")
SEPARATE = {"kind": "separate"}


def models(folder: Path, family: str = "llama", saved: Path | None = None, **sections: Any) -> Models:
    if not (folder / "policy").exists():
        save_policy(folder / "policy", family)
    return load_models(make_config(folder, **sections), make_tokenizer(), CPU, saved)


@torch.no_grad()
def change(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize("lora", [{}, {"rank": 2}], ids=["full", "lora"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "flan_t5", "bart"])
def test_what_is_saved_comes_back_bit_by_bit(tmp_path: Path, family: str, lora: Any, critic: str) -> None:
    sections: dict[str, Any] = {"lora": lora, "critic": {"kind": critic}}
    first = models(tmp_path, family, **sections).actor_critic
    change(first)
    save_models(first, tmp_path / "saved")
    again = models(tmp_path, family, saved=tmp_path / "saved", **sections).actor_critic
    expected, found = dict(first.named_parameters()), dict(again.named_parameters())
    assert expected.keys() == found.keys()
    for name, parameter in expected.items():
        assert torch.equal(parameter, found[name]), name
        assert parameter.requires_grad == found[name].requires_grad, name


@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize("lora", [{}, {"rank": 2}], ids=["full", "lora"])
@pytest.mark.parametrize("family", ["llama", "t5", "bart"])
def test_all_that_has_gradients_gets_one(tmp_path: Path, family: str, lora: Any, critic: str) -> None:
    """Or processes would wait for each other's gradients for ever."""
    from client.ppo.test_critic import NUMBERS, PROMPTS, awaken

    actor_critic = models(tmp_path, family, lora=lora, critic={"kind": critic}).actor_critic
    change(actor_critic)
    awaken(actor_critic.critic.head)
    found = actor_critic(actor_critic.policy.sample(PROMPTS, NUMBERS).sequences)
    (found.log_probs.square().sum() + found.values.square().sum()).backward()
    for name, parameter in actor_critic.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@pytest.mark.parametrize(("family", "critic"), [("llama", "shared"), ("llama", "separate"), ("t5", "separate")])
def test_an_adapters_critic_and_reference_have_no_weights_of_their_own(
    tmp_path: Path, family: str, critic: str
) -> None:
    made = models(tmp_path, family, lora={"rank": 2}, critic={"kind": critic})
    start = sum(p.numel() for p in make_language_model(family).parameters())
    _, num_all = trained_share(made.actor_critic)
    adapters = sum(p.numel() for n, p in made.actor_critic.named_parameters() if "lora_" in n)
    assert num_all == start + adapters + 33, "the value head has 32 weights and a bias"
    if isinstance(critic := made.actor_critic.critic, SeparateCritic):
        storages = {p.data_ptr() for p in made.actor_critic.policy.parameters() if not p.requires_grad}
        assert {p.data_ptr() for p in critic.trunk.parameters() if not p.requires_grad} <= storages


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_at_most_two_percent_of_the_parameters_have_gradients(tmp_path: Path, critic: str) -> None:
    """GPT-2 of the task on which trainers are compared, with the value head among them."""
    sizes = {"n_layer": 4, "n_embd": 128, "n_head": 4, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(vocab_size=2000, **sizes)).save_pretrained(tmp_path / "policy")
    rank = 8 if critic == "shared" else 4
    num_trained, num_all = trained_share(
        models(tmp_path, lora={"rank": rank}, critic={"kind": critic}, rollout={"min_response_tokens": 6}).actor_critic
    )
    assert 0 < num_trained / num_all <= 0.02


def test_two_adapters_begin_alike_by_the_seed(tmp_path: Path) -> None:
    def parameters(seed: int) -> list[torch.Tensor]:
        made = models(tmp_path, lora={"rank": 2}, train={"seed": seed})
        return [p for n, p in made.actor_critic.named_parameters() if "lora_A" in n]

    torch.manual_seed(1)
    first = parameters(1)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, parameters(1), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, parameters(2), strict=True))


def test_what_an_adapter_stands_on_may_be_bfloat16(tmp_path: Path) -> None:
    made = models(tmp_path, lora={"rank": 2}, critic=SEPARATE, policy={"dtype": "bfloat16"})
    for name, parameter in made.actor_critic.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name


@pytest.mark.parametrize(
    ("family", "peft_class", "auto_class"),
    [
        ("llama", AutoPeftModelForCausalLM, AutoModelForCausalLM),
        ("gpt2", AutoPeftModelForCausalLM, AutoModelForCausalLM),
        ("t5", AutoPeftModelForSeq2SeqLM, AutoModelForSeq2SeqLM),
        ("bart", AutoPeftModelForSeq2SeqLM, AutoModelForSeq2SeqLM),
    ],
)
def test_a_runs_adapter_is_loaded_by_peft_and_its_merged_policy_by_transformers(
    tmp_path: Path, family: str, peft_class: Any, auto_class: Any
) -> None:
    save_policy(tmp_path / "policy", family)
    save_id_prompts(tmp_path / "prompts.jsonl")
    lora = {"rank": 2, "merge": True}
    trainer = PPOTrainer(make_config(tmp_path, lora=lora, ppo={"learning_rate": 1e-2}), FakeRewards())
    trainer.train()
    inputs = {"input_ids": torch.arange(10, 30).view(2, 10)}
    if auto_class is AutoModelForSeq2SeqLM:
        inputs["decoder_input_ids"] = torch.arange(40, 50).view(2, 5)
    trained = trainer.run.actor_critic.policy.model.eval()
    with torch.no_grad():
        expected = trained(**inputs).logits
        start = auto_class.from_pretrained(tmp_path / "policy").eval()(**inputs).logits
        adapter = peft_class.from_pretrained(tmp_path / "run" / "policy").eval()(**inputs).logits
        plain = auto_class.from_pretrained(tmp_path / "run" / "policy").eval()(**inputs).logits
        merged = auto_class.from_pretrained(tmp_path / "run" / "policy-merged").eval()
    assert not torch.allclose(start, expected, atol=1e-3)
    assert torch.allclose(adapter, expected, atol=1e-5)
    assert torch.allclose(plain, expected, atol=1e-5)
    assert not [name for name, _ in merged.named_parameters() if "lora_" in name]
    assert torch.allclose(merged(**inputs).logits, expected, atol=1e-5)
    assert (tmp_path / "run" / "policy-merged" / "tokenizer.json").is_file()

    # A run can begin with the adapter of another: it is merged, and all of it is trained.
    config = make_config(tmp_path, policy={"model": str(tmp_path / "run" / "policy")})
    begun = load_models(config, None, CPU)
    with torch.no_grad():
        assert torch.allclose(begun.actor_critic.policy.model(**inputs).logits, expected, atol=1e-5)
    num_trained, num_all = trained_share(begun.actor_critic)
    assert num_trained == num_all
    with pytest.raises(ConfigError, match="is an adapter"):
        load_models(make_config(tmp_path, policy={"model": str(tmp_path / "run" / "policy")}, lora=lora), None, CPU)


def test_an_adapters_run_may_name_another_reference(tmp_path: Path) -> None:
    save_policy(tmp_path / "reference", "llama", seed=7)
    policy = {"model": str(tmp_path / "policy"), "reference": str(tmp_path / "reference")}
    made = models(tmp_path, lora={"rank": 2}, policy=policy)
    assert isinstance(made.reference, nn.Module)
    assert set(made.digests) == {"policy.model", "policy.reference"}
    assert made.digests["policy.model"] != made.digests["policy.reference"]


def test_a_reference_that_names_other_eos_is_read_by_the_policys_rule(tmp_path: Path) -> None:
    """As a chat model's generation_config.json does; else what one of them masks would be infinitely unlikely."""
    from client.ppo.test_critic import NUMBERS, PROMPTS

    reference = save_policy(tmp_path / "reference", "llama")
    save_policy(tmp_path / "policy", "llama")
    GenerationConfig(eos_token_id=[EOS_ID, *range(5, VOCAB_SIZE)]).save_pretrained(reference)
    policy = {"model": str(tmp_path / "policy"), "reference": str(reference)}
    made = models(tmp_path, policy=policy, rollout={"min_response_tokens": 3})
    sequences = made.actor_critic.policy.sample(PROMPTS, NUMBERS).sequences
    with torch.no_grad():
        log_probs = made.actor_critic.policy(sequences).log_probs
        assert torch.equal(made.reference(sequences).log_probs, log_probs)


def test_an_adapters_run_does_not_go_on_with_other_weights(tmp_path: Path) -> None:
    save_policy(tmp_path / "policy", "llama")
    save_policy(tmp_path / "trunk", "llama", seed=3)
    save_id_prompts(tmp_path / "prompts.jsonl")
    critic = {"kind": "separate", "model": str(tmp_path / "trunk")}
    PPOTrainer(make_config(tmp_path, lora={"rank": 2}, critic=critic), FakeRewards()).train()
    save_policy(tmp_path / "trunk", "llama", seed=4)
    with pytest.raises(CheckpointError, match=r"what critic\.model names is not what it was"):
        PPOTrainer.resume(tmp_path / "run", FakeRewards())


def test_other_tensors_than_the_settings_name(tmp_path: Path) -> None:
    made = models(tmp_path, lora={"rank": 2}).actor_critic
    save_models(made, tmp_path / "saved")
    with pytest.raises(CheckpointError, match="another critic"):
        load_critic(models(tmp_path, critic=SEPARATE).actor_critic, tmp_path / "saved")
    with pytest.raises(CheckpointError, match="cannot be read"):
        models(tmp_path, lora={"rank": 3}, saved=tmp_path / "saved")
    with pytest.raises(CheckpointError, match="is not the model's: it lacks"):
        models(tmp_path, lora={"rank": 2, "target_modules": ["o_proj"]}, saved=tmp_path / "saved")


def test_architectures_are_not_mixed(tmp_path: Path) -> None:
    save_policy(tmp_path / "other", "t5")
    with pytest.raises(ConfigError, match=r"policy\.reference: .* is of another architecture"):
        models(tmp_path, policy={"model": str(tmp_path / "policy"), "reference": str(tmp_path / "other")})
    with pytest.raises(ConfigError, match=r"critic\.model: .* is of another architecture"):
        models(tmp_path, critic={**SEPARATE, "model": str(tmp_path / "other")})


@pytest.mark.parametrize("lora", [{}, {"rank": 2}], ids=["full", "lora"])
def test_a_critic_starts_as_the_reward_model(tmp_path: Path, lora: Any) -> None:
    from client.ppo.test_critic import NUMBERS, PROMPTS

    folder = make_checkpoint(tmp_path / "reward", "llama", seed=5, hidden_size=48)  # wider than the policy
    made = models(tmp_path, lora=lora, critic={**SEPARATE, "init": str(folder)})
    sequences = made.actor_critic.policy.sample(PROMPTS, NUMBERS).sequences
    reward_model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        values = made.actor_critic(sequences).values
        for row, length in enumerate(sequences.prompts.mask.sum(1).tolist()):
            prompt = sequences.prompts.ids[row, -length:]
            for t in range(int(sequences.response_mask[row].sum())):
                # The value of the state before token t is the score of all that precedes it.
                text = torch.cat([prompt, sequences.response_ids[row, :t]])
                assert values[row, t] == pytest.approx(float(reward_model(input_ids=text[None]).logits), abs=1e-4)
    assert ("critic.init" in made.digests) == bool(lora)


@pytest.mark.parametrize("start", ["policy", "model", "init"])
@pytest.mark.parametrize("lora", [{}, {"rank": 2}], ids=["full", "lora"])
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_critic_has_no_dropout_wherever_it_starts(tmp_path: Path, family: str, lora: Any, start: str) -> None:
    from client.ppo.test_critic import NUMBERS, PROMPTS, awaken

    dropout = {"attention_dropout": 0.5} if family == "llama" else {"dropout_rate": 0.3}
    save_policy(tmp_path / "policy", family, **dropout)
    critic: dict[str, Any] = {**SEPARATE}
    if start == "model":
        critic["model"] = str(save_policy(tmp_path / "trunk", family, seed=3, **dropout))
    elif start == "init" and family == "llama":
        critic["init"] = str(make_checkpoint(tmp_path / "reward", family, **dropout))
    elif start == "init":
        critic["init"] = str(save_encoder_decoder_reward_model(tmp_path / "reward", family, **dropout))
    actor_critic = models(tmp_path, lora=lora, critic=critic).actor_critic
    awaken(actor_critic.critic.head)
    sequences = actor_critic.policy.sample(PROMPTS, NUMBERS).sequences
    with torch.no_grad():
        assert torch.equal(actor_critic.train()(sequences).values, actor_critic.eval()(sequences).values)


@pytest.mark.parametrize("lora", [{}, {"rank": 2}], ids=["full", "lora"])
@pytest.mark.parametrize("family", ["t5", "flan_t5", "bart"])
def test_a_critic_of_an_encoder_decoder_starts_as_one(tmp_path: Path, family: str, lora: Any) -> None:
    from client.ppo.test_critic import NUMBERS, PROMPTS

    folder = save_encoder_decoder_reward_model(tmp_path / "reward", family)
    made = models(tmp_path, family, lora=lora, critic={**SEPARATE, "init": str(folder)})
    sequences = made.actor_critic.policy.sample(PROMPTS, NUMBERS).sequences
    reward_model = AutoModelForSequenceClassification.from_pretrained(folder)
    start = reward_model.config.decoder_start_token_id
    with torch.no_grad():
        values = made.actor_critic(sequences).values
        assert float(values[sequences.response_mask].std()) > 1e-3
        for row, length in enumerate(sequences.prompts.mask.sum(1).tolist()):
            prompt = sequences.prompts.ids[row, -length:]
            for t in range(int(sequences.response_mask[row].sum())):
                # The head, read off the last token that the decoder has seen.
                read = torch.cat([torch.tensor([start]), sequences.response_ids[row, :t]])
                hidden = reward_model.base_model(input_ids=prompt[None], decoder_input_ids=read[None])[0]
                assert values[row, t] == pytest.approx(float(reward_model.classification_head(hidden[:, -1])), abs=1e-4)
    (values_with_gradient := made.actor_critic(sequences).values).sum().backward()
    assert values_with_gradient.requires_grad
    assert all(p.grad is not None for p in made.actor_critic.critic.head.parameters())


def save_encoder_decoder_reward_model(folder: Path, family: str, **more: Any) -> Path:
    settings = {"vocab_size": VOCAB_SIZE, "pad_token_id": PAD_ID, "eos_token_id": EOS_ID, "num_labels": 1}
    settings |= {**ENCODER_DECODERS[family], "classifier_dropout": 0.3, **more}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_run_whose_critic_started_from_a_reward_model_is_resumed(tmp_path: Path, family: str) -> None:
    save_policy(tmp_path / "policy", family)
    save_id_prompts(tmp_path / "prompts.jsonl")
    if family == "t5":
        folder = save_encoder_decoder_reward_model(tmp_path / "reward", family)
    else:
        folder = make_checkpoint(tmp_path / "reward", family)
    PPOTrainer(make_config(tmp_path, critic={**SEPARATE, "init": str(folder)}), FakeRewards()).train()
    PPOTrainer.resume(tmp_path / "run", FakeRewards(), ["train.num_steps=3"]).train()
    assert len(read_jsonl(tmp_path / "run" / "metrics.jsonl")) == 3
