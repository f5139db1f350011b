"""Sampled and evaluated log-probabilities agree, for every family; the classic mistakes do not go unnoticed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import EOS_ID, PAD_ID, VOCAB_SIZE
from tiny_policies import FAMILIES_OF_POLICIES, make_language_model
from torch import nn

from ppo_client.ppo import policy as policy_module
from ppo_client.ppo.distribution import SamplingRule, token_log_probs
from ppo_client.ppo.errors import ConfigError
from ppo_client.ppo.policy import DecoderPolicy, disable_dropout
from ppo_client.ppo.seeds import Purpose, uniforms
from ppo_client.ppo.sequences import Prompts, Sequences

NUM_TOKENS = 12
LENGTHS = (3, 9, 5, 1, 7, 4)


def make_policy(family: str = "gpt2", rule: SamplingRule | None = None, **config: Any) -> DecoderPolicy:
    model = make_language_model(family, **config)
    disable_dropout(model)
    return DecoderPolicy(model, rule or SamplingRule(0.7, (EOS_ID,), 1), PAD_ID).train()


def make_prompts(lengths: Sequence[int] = LENGTHS) -> Prompts:
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(5, VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]
    return Prompts.collate(rows, PAD_ID)


def numbers(num_rows: int = len(LENGTHS), num_tokens: int = NUM_TOKENS) -> torch.Tensor:
    return uniforms(7, Purpose.SAMPLING, 1, range(num_rows), num_tokens)


@torch.no_grad()
def evaluated(policy: DecoderPolicy, sequences: Sequences) -> torch.Tensor:
    logits, _ = policy(sequences)
    return token_log_probs(logits, sequences.response_ids) * sequences.response_mask


def largest_difference(policy: DecoderPolicy, evaluating: DecoderPolicy | None = None) -> float:
    samples = policy.sample(make_prompts(), numbers())
    log_probs = evaluated(evaluating or policy, samples.sequences)
    return float((samples.log_probs - log_probs).abs().max())


@pytest.mark.parametrize("family", FAMILIES_OF_POLICIES)
def test_sampled_log_probs_are_the_evaluated_ones(family: str) -> None:
    assert largest_difference(make_policy(family)) < 1e-4


@pytest.mark.parametrize("family", FAMILIES_OF_POLICIES)
def test_a_padded_row_is_as_if_it_were_alone(family: str) -> None:
    policy = make_policy(family)
    samples = policy.sample(make_prompts(), numbers())
    together = evaluated(policy, samples.sequences)
    for row in range(len(LENGTHS)):
        alone = evaluated(policy, samples.sequences.select(torch.tensor([row])))
        assert torch.allclose(alone[0], together[row, : alone.shape[1]], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES_OF_POLICIES)
def test_evaluation_is_transformers_own_single_row_forward(family: str) -> None:
    policy = make_policy(family)
    samples = policy.sample(make_prompts(), numbers())
    together = evaluated(policy, samples.sequences)
    for row, length in enumerate(LENGTHS):
        num_tokens = int(samples.sequences.response_mask[row].sum())
        response = samples.sequences.response_ids[row, :num_tokens]
        ids = torch.cat([samples.sequences.prompts.ids[row, -length:], response])
        with torch.no_grad():
            raw = policy.model(input_ids=ids[None]).logits[0, length - 1 : -1]
        expected = policy.rule.logits(raw[None])[0].log_softmax(-1).gather(-1, response[:, None])[:, 0]
        assert torch.allclose(together[row, :num_tokens], expected, atol=1e-4)


def test_without_temperature_in_evaluation_it_shows() -> None:
    policy = make_policy()
    wrong = DecoderPolicy(policy.model, replace(policy.rule, temperature=1.0), PAD_ID)
    assert largest_difference(policy, wrong) > 0.1


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_without_positions_it_shows(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy(family)
    samples = policy.sample(make_prompts(), numbers())
    right = evaluated(policy, samples.sequences)

    def columns_for_positions(ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        return {"input_ids": ids, "position_ids": positions, "attention_mask": mask.long()}

    monkeypatch.setattr(policy_module, "_with_positions", columns_for_positions)
    shifted = evaluated(policy, samples.sequences)
    if family == "gpt2":  # absolute positions
        assert float((shifted - right).abs().max()) > 0.1
    else:  # rotary ones are relative, so a shift of the whole row changes nothing
        assert torch.allclose(shifted, right, atol=1e-4)


def test_without_a_mask_for_the_padding_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy("llama")
    samples = policy.sample(make_prompts(), numbers())
    right = evaluated(policy, samples.sequences)
    before = policy_module._with_positions
    monkeypatch.setattr(
        policy_module,
        "_with_positions",
        lambda ids, mask: {**before(ids, mask), "attention_mask": torch.ones_like(ids)},
    )
    assert float((evaluated(policy, samples.sequences) - right).abs().max()) > 0.1


def test_a_minimum_length_in_sampling_alone_shows() -> None:
    policy = make_policy(rule=SamplingRule(1.0, (EOS_ID,), 8))
    wrong = DecoderPolicy(policy.model, replace(policy.rule, min_tokens=0), PAD_ID)
    assert largest_difference(policy) < 1e-4
    assert largest_difference(policy, wrong) > 1e-3


DROPOUTS = {
    "gpt2": {"attn_pdrop": 0.3, "resid_pdrop": 0.3, "embd_pdrop": 0.3},
    "llama": {"attention_dropout": 0.5},
    "qwen2": {"attention_dropout": 0.5},
    "mistral": {"attention_dropout": 0.5},
    "gemma2": {"attention_dropout": 0.5},
}


@pytest.mark.parametrize("family", FAMILIES_OF_POLICIES)
def test_dropout_is_off_in_training_mode(family: str) -> None:
    samples = make_policy(family).sample(make_prompts(), numbers())
    model = make_language_model(family, **DROPOUTS[family])
    policy = DecoderPolicy(model, SamplingRule(0.7, (EOS_ID,), 1), PAD_ID)
    quiet = evaluated(policy.eval(), samples.sequences)
    noisy = evaluated(policy.train(), samples.sequences)
    assert float((noisy - quiet).abs().max()) > 0.01, "the test needs a dropout that does something"
    disable_dropout(model)
    assert torch.equal(evaluated(policy.train(), samples.sequences), quiet)


def test_the_numbers_alone_decide_a_sample_not_its_neighbours() -> None:
    policy = make_policy("llama")
    prompts = make_prompts()
    together = policy.sample(prompts, numbers()).sequences
    for row in range(len(LENGTHS)):
        one = Prompts(prompts.ids[row : row + 1], prompts.mask[row : row + 1])
        alone = policy.sample(one, numbers()[row : row + 1]).sequences
        assert torch.equal(alone.response_ids[0], together.response_ids[row])


class NoOpinion(nn.Module):
    """A model whose next token depends on nothing; its logits can be set."""

    def __init__(self, model: Any, logits: torch.Tensor) -> None:
        super().__init__()
        self.inner = model
        self.config = model.config
        self.logits = logits

    def get_output_embeddings(self) -> nn.Module:
        module: nn.Module = self.inner.get_output_embeddings()
        return module

    def forward(self, input_ids: torch.Tensor, logits_to_keep: int = 0, **rest: Any) -> Any:
        output = self.inner(input_ids=input_ids, logits_to_keep=logits_to_keep, **rest)
        output.logits = self.logits.expand_as(output.logits)
        return output


def test_responses_end_with_the_sampled_eos_though_it_is_the_pad_token() -> None:
    logits = torch.full((VOCAB_SIZE,), -1e4)
    logits[EOS_ID], logits[7] = 0.0, 0.0
    model = NoOpinion(make_language_model(), logits)
    policy = DecoderPolicy(model, SamplingRule(1.0, (EOS_ID,), 1), pad_id=EOS_ID)
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


def test_a_fixed_length_has_no_eos_and_is_consistent() -> None:
    policy = make_policy(rule=SamplingRule(1.0, (EOS_ID,), NUM_TOKENS))
    samples = policy.sample(make_prompts(), numbers())
    assert bool(samples.sequences.response_mask.all())
    assert not bool(samples.has_eos.any())
    assert not bool((samples.sequences.response_ids == EOS_ID).any())
    assert largest_difference(policy) < 1e-4


def test_rows_that_end_early_are_dropped_from_the_cache_without_a_trace() -> None:
    logits = torch.full((VOCAB_SIZE,), -1.0)
    logits[EOS_ID] = 4.0
    model = make_language_model("llama")
    with torch.no_grad():  # an EOS that is likely, beside a model that still has an opinion
        model.lm_head.bias = nn.Parameter(logits - logits.mean())
    policy = DecoderPolicy(model, SamplingRule(1.0, (EOS_ID,), 1), PAD_ID)
    widths: list[int] = []
    before = policy.model.forward

    def counting(**inputs: Any) -> Any:
        widths.append(len(inputs["input_ids"]))
        return before(**inputs)

    policy.model.forward = counting
    samples = policy.sample(make_prompts([4, 6, 3, 8] * 8), numbers(32))
    policy.model.forward = before
    assert widths[0] == 32
    assert widths[-1] < 32
    assert widths == sorted(widths, reverse=True)
    assert float((samples.log_probs - evaluated(policy, samples.sequences)).abs().max()) < 1e-4


def test_logits_are_computed_for_the_response_alone() -> None:
    policy = make_policy()
    shapes: list[tuple[int, ...]] = []
    policy.model.get_output_embeddings().register_forward_hook(lambda _m, _i, output: shapes.append(output.shape))
    samples = policy.sample(make_prompts(), numbers())
    assert {shape[1] for shape in shapes} == {1}
    shapes.clear()
    evaluated(policy, samples.sequences)
    assert [shape[1] for shape in shapes] == [NUM_TOKENS]


def test_gradients_are_finite_with_padding_on_the_left() -> None:
    policy = make_policy("llama")
    samples = policy.sample(make_prompts(), numbers())
    logits, _ = policy(samples.sequences)
    token_log_probs(logits, samples.sequences.response_ids)[samples.sequences.response_mask].sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in policy.parameters() if p.grad is not None)


def test_gradient_checkpointing_changes_no_number() -> None:
    policy = make_policy("llama")
    samples = policy.sample(make_prompts(), numbers())

    def gradients() -> list[torch.Tensor]:
        policy.zero_grad()
        logits, _ = policy.train()(samples.sequences)
        token_log_probs(logits, samples.sequences.response_ids)[samples.sequences.response_mask].sum().backward()
        return [p.grad.clone() for p in policy.parameters() if p.grad is not None]

    plain = gradients()
    policy.model.activation_checkpointing_enable()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, gradients(), strict=True))
    again = policy.eval().sample(make_prompts(), numbers())
    assert torch.equal(again.sequences.response_ids, samples.sequences.response_ids)


def test_models_that_cannot_be_policies_are_named() -> None:
    from transformers import MambaConfig, MambaForCausalLM, T5Config, T5ForConditionalGeneration

    t5 = T5ForConditionalGeneration(T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    with pytest.raises(ConfigError, match="T5ForConditionalGeneration, an encoder-decoder"):
        DecoderPolicy(t5, SamplingRule(), 0)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, state_size=4))
    with pytest.raises(ConfigError, match="MambaForCausalLM, whose recurrent state"):
        DecoderPolicy(mamba, SamplingRule(), 0)
