"""Sampled and evaluated log-probabilities agree, for every family; the classic mistakes do not go unnoticed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import EOS_ID, PAD_ID, VOCAB_SIZE
from tiny_policies import ENCODER_DECODERS, FAMILIES_OF_POLICIES, make_language_model
from torch import nn

from ppo_client.ppo.config import LoRAConfig, RolloutConfig
from ppo_client.ppo.errors import ConfigError
from ppo_client.ppo.models import causal, seq2seq
from ppo_client.ppo.models.build import make_policy as wrap
from ppo_client.ppo.models.causal import CausalPolicy
from ppo_client.ppo.models.distribution import SamplingRule
from ppo_client.ppo.models.lora import AdapterOff, add_adapter
from ppo_client.ppo.models.run_models import checkpoint_activations
from ppo_client.ppo.models.seq2seq import Seq2SeqPolicy
from ppo_client.ppo.models.sequences import Prompts, Sequences
from ppo_client.ppo.policy import Policy, disable_dropout
from ppo_client.ppo.seeds import Purpose, uniforms

NUM_TOKENS = 12
LENGTHS = (3, 9, 5, 1, 7, 4)


def of(model: Any, rule: SamplingRule, pad_id: int = PAD_ID) -> Policy:
    kind = Seq2SeqPolicy if model.config.is_encoder_decoder else CausalPolicy
    return kind(model, rule, pad_id)


def make_policy(family: str = "gpt2", rule: SamplingRule | None = None, **config: Any) -> Policy:
    """`family`: one of tiny_policies, or that with an adapter, which does something: "llama+lora"."""
    family, _, adapter = family.partition("+")
    model = make_language_model(family, **config)
    disable_dropout(model)
    if adapter:
        add_adapter(model, LoRAConfig(rank=2), seed=0)
        awaken(model)
    return of(model, rule or SamplingRule(0.7, (EOS_ID,), 1)).train()


@torch.no_grad()
def awaken(model: nn.Module) -> None:
    """An adapter's second matrix is zero at first."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


KINDS = (*FAMILIES_OF_POLICIES, "gpt2+lora", "llama+lora", "t5+lora", "bart+lora")


def make_prompts(lengths: Sequence[int] = LENGTHS) -> Prompts:
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(5, VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]
    return Prompts.collate(rows, PAD_ID)


def numbers(num_rows: int = len(LENGTHS), num_tokens: int = NUM_TOKENS) -> torch.Tensor:
    return uniforms(7, Purpose.SAMPLING, 1, range(num_rows), num_tokens)


@torch.no_grad()
def evaluated(policy: Policy, sequences: Sequences) -> torch.Tensor:
    return policy(sequences).log_probs * sequences.response_mask


def largest_difference(policy: Policy, evaluating: Policy | None = None) -> float:
    samples = policy.sample(make_prompts(), numbers())
    log_probs = evaluated(evaluating or policy, samples.sequences)
    return float((samples.log_probs - log_probs).abs().max())


@pytest.mark.parametrize("family", KINDS)
def test_sampled_log_probs_are_the_evaluated_ones(family: str) -> None:
    assert largest_difference(make_policy(family)) < 1e-4


@pytest.mark.parametrize("family", KINDS)
def test_a_padded_row_is_as_if_it_were_alone(family: str) -> None:
    policy = make_policy(family)
    samples = policy.sample(make_prompts(), numbers())
    together = evaluated(policy, samples.sequences)
    for row in range(len(LENGTHS)):
        alone = evaluated(policy, samples.sequences.select(torch.tensor([row])))
        assert torch.allclose(alone[0], together[row, : alone.shape[1]], atol=1e-4)


def own_log_probs(policy: Policy, prompt: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    """Of one row, by the model's own forward pass, as its documentation has it."""
    if policy.model.config.is_encoder_decoder:
        before = torch.tensor([policy.model.config.decoder_start_token_id, *response[:-1].tolist()])
        raw = policy.model(input_ids=prompt[None], decoder_input_ids=before[None]).logits
    else:
        raw = policy.model(input_ids=torch.cat([prompt, response])[None]).logits[:, len(prompt) - 1 : -1]
    return policy.rule.logits(raw)[0].log_softmax(-1).gather(-1, response[:, None])[:, 0]


@pytest.mark.parametrize("family", KINDS)
def test_evaluation_is_transformers_own_single_row_forward(family: str) -> None:
    policy = make_policy(family)
    samples = policy.sample(make_prompts(), numbers())
    together = evaluated(policy, samples.sequences)
    for row, length in enumerate(LENGTHS):
        num_tokens = int(samples.sequences.response_mask[row].sum())
        response = samples.sequences.response_ids[row, :num_tokens]
        with torch.no_grad():
            expected = own_log_probs(policy, samples.sequences.prompts.ids[row, -length:], response)
        assert torch.allclose(together[row, :num_tokens], expected, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_without_temperature_in_evaluation_it_shows(family: str) -> None:
    policy = make_policy(family)
    wrong = of(policy.model, replace(policy.rule, temperature=1.0))
    assert largest_difference(policy, wrong) > 0.1


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_without_positions_it_shows(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy(family)
    samples = policy.sample(make_prompts(), numbers())
    right = evaluated(policy, samples.sequences)

    def columns_for_positions(ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        return {"input_ids": ids, "position_ids": positions, "attention_mask": mask.long()}

    monkeypatch.setattr(causal, "_with_positions", columns_for_positions)
    shifted = evaluated(policy, samples.sequences)
    if family == "gpt2":  # absolute positions
        assert float((shifted - right).abs().max()) > 0.1
    else:  # rotary ones are relative, so a shift of the whole row changes nothing
        assert torch.allclose(shifted, right, atol=1e-4)


def test_without_a_mask_for_the_padding_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy("llama")
    samples = policy.sample(make_prompts(), numbers())
    right = evaluated(policy, samples.sequences)
    before = causal._with_positions
    monkeypatch.setattr(
        causal,
        "_with_positions",
        lambda ids, mask: {**before(ids, mask), "attention_mask": torch.ones_like(ids)},
    )
    assert float((evaluated(policy, samples.sequences) - right).abs().max()) > 0.1


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_a_prompt_padded_on_the_left_for_the_encoder_shows(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy(family)
    samples = policy.sample(make_prompts(), numbers())
    right = evaluated(policy, samples.sequences)

    def on_the_left(prompts: Prompts) -> dict[str, torch.Tensor]:
        return {"input_ids": prompts.ids, "attention_mask": prompts.mask.long()}

    monkeypatch.setattr(seq2seq, "encoder_inputs", on_the_left)
    shifted = evaluated(policy, samples.sequences)
    if family == "bart":  # absolute positions
        assert float((shifted - right).abs().max()) > 0.1
    else:  # T5's are relative
        assert torch.allclose(shifted, right, atol=1e-4)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_without_a_mask_for_the_encoders_padding_it_shows(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy(family)
    samples = policy.sample(make_prompts(), numbers())
    right = evaluated(policy, samples.sequences)
    before = seq2seq.encoder_inputs
    monkeypatch.setattr(seq2seq, "encoder_inputs", lambda prompts: {"input_ids": before(prompts)["input_ids"]})
    assert float((evaluated(policy, samples.sequences) - right).abs().max()) > 0.1


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_the_encoder_reads_a_prompt_once(family: str) -> None:
    policy = make_policy(family)
    calls = []
    policy.model.get_encoder().register_forward_hook(lambda *_: calls.append(1))
    policy.sample(make_prompts(), numbers())
    assert len(calls) == 1


def test_a_minimum_length_in_sampling_alone_shows() -> None:
    policy = make_policy(rule=SamplingRule(1.0, (EOS_ID,), 8))
    wrong = of(policy.model, replace(policy.rule, min_tokens=0))
    assert largest_difference(policy) < 1e-4
    assert largest_difference(policy, wrong) > 1e-3


DROPOUTS = {
    "gpt2": {"attn_pdrop": 0.3, "resid_pdrop": 0.3, "embd_pdrop": 0.3},
    "llama": {"attention_dropout": 0.5},
    "qwen2": {"attention_dropout": 0.5},
    "mistral": {"attention_dropout": 0.5},
    "gemma2": {"attention_dropout": 0.5},
    "t5": {"dropout_rate": 0.3},
    "flan_t5": {"dropout_rate": 0.3},
    "bart": {"dropout": 0.3, "attention_dropout": 0.3, "activation_dropout": 0.3, "decoder_layerdrop": 0.5},
}


@pytest.mark.parametrize("family", FAMILIES_OF_POLICIES)
def test_dropout_is_off_in_training_mode(family: str) -> None:
    samples = make_policy(family).sample(make_prompts(), numbers())
    model = make_language_model(family, **DROPOUTS[family])
    policy = of(model, SamplingRule(0.7, (EOS_ID,), 1))
    quiet = evaluated(policy.eval(), samples.sequences)
    noisy = evaluated(policy.train(), samples.sequences)
    assert float((noisy - quiet).abs().max()) > 0.01, "the test needs a dropout that does something"
    disable_dropout(model)
    assert torch.equal(evaluated(policy.train(), samples.sequences), quiet)


def test_routers_of_experts_have_no_noise_in_training_mode() -> None:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "router_jitter_noise": 0.3}
    model = make_language_model("llama", model_type="mixtral", **experts)
    policy = of(model, SamplingRule(0.7, (EOS_ID,), 1))
    samples = policy.eval().sample(make_prompts(), numbers())
    quiet = evaluated(policy, samples.sequences)
    assert float((evaluated(policy.train(), samples.sequences) - quiet).abs().max()) > 0.01
    disable_dropout(model)
    assert torch.equal(evaluated(policy.train(), samples.sequences), quiet)


@pytest.mark.parametrize("family", ["llama", "t5", "bart"])
def test_the_numbers_alone_decide_a_sample_not_its_neighbours(family: str) -> None:
    policy = make_policy(family)
    prompts = make_prompts()
    together = policy.sample(prompts, numbers()).sequences
    for row in range(len(LENGTHS)):
        one = Prompts(prompts.ids[row : row + 1], prompts.mask[row : row + 1])
        alone = policy.sample(one, numbers()[row : row + 1]).sequences
        assert torch.equal(alone.response_ids[0], together.response_ids[row])


def no_opinion(family: str, logits: torch.Tensor) -> Any:
    """A model whose next token depends on nothing; its logits can be set."""
    model = make_language_model(family)
    model.get_output_embeddings().register_forward_hook(lambda _m, _i, output: logits.expand_as(output))
    return model


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_responses_end_with_the_sampled_eos_though_it_is_the_pad_token(family: str) -> None:
    logits = torch.full((VOCAB_SIZE,), -1e4)
    logits[EOS_ID], logits[7] = 0.0, 0.0
    policy = of(no_opinion(family, logits), SamplingRule(1.0, (EOS_ID,), 1), pad_id=EOS_ID)
    samples = policy.sample(make_prompts([2] * 64), numbers(64))
    for ids, mask, ended in zip(
        samples.sequences.response_ids.tolist(),
        samples.sequences.response_mask.tolist(),
        samples.has_eos.tolist(),
        strict=True,
    ):
        length = sum(mask)
        assert mask == [True] * length + [False] * (NUM_TOKENS - length)
        assert ids[: length - 1] == [7] * (length - 1)
        assert ended == (ids[length - 1] == EOS_ID)
        assert ended or length == NUM_TOKENS
    lengths = samples.sequences.response_mask.sum(1)
    assert len(set(lengths.tolist())) > 3
    # EOS is forbidden as the first token and has one chance in two afterwards.
    assert int(lengths.min()) == 2
    assert torch.equal(samples.log_probs[:, 0], torch.zeros(64))
    assert torch.allclose(samples.log_probs[:, 1], torch.full((64,), 0.5).log())
    assert torch.allclose(samples.entropies[:, 1], -torch.full((64,), 0.5).log())
    assert torch.equal(samples.entropies != 0, samples.sequences.response_mask & (torch.arange(NUM_TOKENS) > 0))


@pytest.mark.parametrize("family", ["gpt2", "t5", "bart"])
def test_a_fixed_length_has_no_eos_and_is_consistent(family: str) -> None:
    policy = make_policy(family, rule=SamplingRule(1.0, (EOS_ID,), NUM_TOKENS))
    samples = policy.sample(make_prompts(), numbers())
    assert bool(samples.sequences.response_mask.all())
    assert not bool(samples.has_eos.any())
    assert not bool((samples.sequences.response_ids == EOS_ID).any())
    assert largest_difference(policy) < 1e-4


@pytest.mark.parametrize("family", ["llama", "t5", "bart"])
def test_rows_that_end_early_are_dropped_from_the_cache_without_a_trace(family: str) -> None:
    logits = torch.full((VOCAB_SIZE,), -1.0)
    logits[EOS_ID] = 4.0
    model = make_language_model(family)
    disable_dropout(model)
    with torch.no_grad():  # an EOS that is likely, beside a model that still has an opinion
        model.lm_head.bias = nn.Parameter(logits - logits.mean())
    policy = of(model, SamplingRule(1.0, (EOS_ID,), 1))
    widths: list[int] = []
    before = policy.model.forward

    def counting(**inputs: Any) -> Any:
        widths.append(len(inputs["decoder_input_ids" if policy.model.config.is_encoder_decoder else "input_ids"]))
        return before(**inputs)

    policy.model.forward = counting
    samples = policy.sample(make_prompts([4, 6, 3, 8] * 8), numbers(32))
    policy.model.forward = before
    assert widths[0] == 32
    assert widths[-1] < 32
    assert widths == sorted(widths, reverse=True)
    assert float((samples.log_probs - evaluated(policy, samples.sequences)).abs().max()) < 1e-4


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_logits_are_computed_for_the_response_alone(family: str) -> None:
    policy = make_policy(family)
    shapes: list[tuple[int, ...]] = []
    policy.model.get_output_embeddings().register_forward_hook(lambda _m, _i, output: shapes.append(output.shape))
    samples = policy.sample(make_prompts(), numbers())
    assert {shape[1] for shape in shapes} == {1}
    shapes.clear()
    evaluated(policy, samples.sequences)
    assert [shape[1] for shape in shapes] == [NUM_TOKENS]


@pytest.mark.parametrize("family", ["llama", "t5", "bart", "llama+lora"])
def test_gradients_are_finite_with_padding(family: str) -> None:
    policy = make_policy(family)
    samples = policy.sample(make_prompts(), numbers())
    policy(samples.sequences).log_probs[samples.sequences.response_mask].sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in policy.parameters() if p.grad is not None)


@pytest.mark.parametrize("family", ["llama", "t5", "bart", "llama+lora", "t5+lora"])
def test_gradient_checkpointing_changes_no_number(family: str) -> None:
    policy = make_policy(family)
    samples = policy.sample(make_prompts(), numbers())

    def gradients() -> list[torch.Tensor]:
        policy.zero_grad()
        policy.train()(samples.sequences).log_probs[samples.sequences.response_mask].sum().backward()
        return [p.grad.clone() for p in policy.parameters() if p.grad is not None]

    plain = gradients()
    assert plain
    checkpoint_activations(policy.model)
    for a, b in zip(plain, gradients(), strict=True):  # added up in another order
        assert float((a - b).abs().max()) <= 1e-5 * max(1.0, float(a.abs().max()))
    again = policy.eval().sample(make_prompts(), numbers())
    assert torch.equal(again.sequences.response_ids, samples.sequences.response_ids)


@pytest.mark.parametrize("is_on", [True, False])
def test_attention_is_not_planned_anew_for_each_sampled_token(is_on: bool) -> None:
    def value_head(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return hidden[:, 0]

    seen: list[bool] = []
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(is_on)
    try:
        for _ in range(2):
            make_policy().sample(make_prompts(), numbers(), value_head)
            assert torch.backends.cuda.cudnn_sdp_enabled() is is_on
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
    assert set(seen) == {False}


def test_models_that_cannot_be_policies_are_named() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    mamba = MambaForCausalLM(MambaConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, state_size=4))
    with pytest.raises(ConfigError, match="MambaForCausalLM, whose recurrent state"):
        CausalPolicy(mamba, SamplingRule(), 0)
    t5 = make_language_model("t5", decoder_start_token_id=None)
    t5.generation_config.decoder_start_token_id = None
    with pytest.raises(ConfigError, match="names a decoder_start_token_id"):
        Seq2SeqPolicy(t5, SamplingRule(), 0)


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "bart"])
def test_a_policy_without_its_adapter_is_what_it_started_from(family: str) -> None:
    model = make_language_model(family)
    disable_dropout(model)
    rollout = RolloutConfig(max_response_tokens=NUM_TOKENS)
    sequences = wrap(model, rollout, None).sample(make_prompts(), numbers()).sequences
    with torch.no_grad():
        start = wrap(model, rollout, None)(sequences).log_probs
        add_adapter(model, LoRAConfig(rank=2), seed=0)
        policy = wrap(model, rollout, None)
        assert torch.equal(policy(sequences).log_probs, start), "a new adapter adds exactly nothing"
        awaken(model)
        assert not torch.allclose(policy(sequences).log_probs, start, atol=1e-2)
        assert torch.equal(AdapterOff(policy)(sequences).log_probs, start)
        assert not torch.allclose(policy(sequences).log_probs, start, atol=1e-2), "it is on again"
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if "lora_" in n
    }
