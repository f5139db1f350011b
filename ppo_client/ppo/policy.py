"""A decoder-only language model as a policy: it samples responses and evaluates the responses it sampled.

What the model computes is here, what becomes of its logits in `distribution.py`. Another kind of policy
(encoder-decoder, say) offers the same two methods.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ppo_client.ppo.distribution import SamplingRule, draw, entropy
from ppo_client.ppo.errors import ConfigError
from ppo_client.ppo.sequences import Prompts, Sequences

# Finished rows are dropped from the KV cache when they are at least this share of the batch; copying it has its price.
_COMPACTION_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Samples:
    """Sampled responses, and what the model thought while it wrote them. R is the longest that was allowed."""

    sequences: Sequences
    has_eos: Tensor
    """bool (B,): ended by itself, was not cut"""
    log_probs: Tensor
    """float32 (B, R), log π of the sampled tokens; 0 where the response mask is False"""
    entropies: Tensor
    """float32 (B, R), nats; 0 where the response mask is False"""
    values: Tensor | None
    """float32 (B, R), where a value head was given"""


class DecoderPolicy(nn.Module):
    """Wraps a transformers model for causal language modelling."""

    def __init__(self, model: Any, rule: SamplingRule, pad_id: int) -> None:
        super().__init__()
        self.model = model
        self.rule = rule
        self.pad_id = pad_id
        _check_is_supported(model)
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        # The last hidden states, exactly where the vocabulary head reads them and for those positions only:
        # `output_hidden_states` would keep every layer's.
        self._head_input: Tensor | None = None
        model.get_output_embeddings().register_forward_pre_hook(self._keep_head_input)

    def forward(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """The policy's logits (B, R, V) and the hidden states (B, R, D) from which each response token is predicted."""
        num_tokens = sequences.response_ids.shape[1]
        output = self.model(**self._inputs(decoder_inputs(sequences)), logits_to_keep=num_tokens, use_cache=False)
        return self.rule.logits(output.logits), self._take_head_input()

    @torch.no_grad()
    def sample(
        self, prompts: Prompts, uniforms: Tensor, value_head: Callable[[Tensor], Tensor] | None = None
    ) -> Samples:
        """One response to each prompt, by uniform numbers float64 (B, R); R is the most tokens a response may have."""
        device = prompts.ids.device
        num_rows, num_tokens = uniforms.shape
        uniforms = uniforms.to(device)
        ids = torch.full((num_rows, num_tokens), self.pad_id, device=device)
        response_mask = torch.zeros((num_rows, num_tokens), dtype=torch.bool, device=device)
        log_probs = torch.zeros((num_rows, num_tokens), device=device)
        entropies, values = torch.zeros_like(log_probs), torch.zeros_like(log_probs)
        has_eos = torch.zeros(num_rows, dtype=torch.bool, device=device)
        eos = torch.tensor(self.rule.eos_ids, dtype=torch.long, device=device)

        rows = torch.arange(num_rows, device=device)  # those still in the cache
        inputs = prompt_inputs(prompts)
        positions = prompts.mask.sum(1, keepdim=True)  # of the next token
        cache = DynamicCache(config=self.model.config)
        for t in range(num_tokens):
            output = self.model(**self._inputs(inputs), past_key_values=cache, use_cache=True, logits_to_keep=1)
            hidden = self._take_head_input()[:, -1]
            distribution = self.rule.logits(output.logits[:, -1:], first_position=t)[:, 0].log_softmax(-1)
            drawn = draw(distribution, uniforms[rows, t])

            running = ~has_eos[rows]
            written = rows[running]
            ids[written, t] = drawn[running]
            response_mask[written, t] = True
            log_probs[written, t] = distribution.gather(-1, drawn.unsqueeze(-1)).squeeze(-1)[running]
            entropies[written, t] = entropy(distribution)[running]
            if value_head is not None:
                values[written, t] = value_head(hidden)[running]
            if len(eos) and t >= self.rule.min_tokens:
                has_eos[rows] |= torch.isin(drawn, eos)
                running = ~has_eos[rows]
                num_running = int(running.sum())
                if num_running == 0:
                    break
                if num_running <= (1 - _COMPACTION_SHARE) * len(rows) and _can_select_rows(cache):
                    kept = running.nonzero().squeeze(1)
                    cache.batch_select_indices(kept)
                    rows, drawn, positions = rows[kept], drawn[kept], positions[kept]
                    inputs = {name: tensor[kept] for name, tensor in inputs.items()}
            inputs = _next_inputs(inputs, drawn, positions)
            positions = positions + 1
        return Samples(
            Sequences(prompts, ids, response_mask),
            has_eos,
            log_probs,
            entropies,
            values if value_head is not None else None,
        )

    def _inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Without positions for the models that have none, such as those with ALiBi."""
        return inputs if self._takes_positions else {k: v for k, v in inputs.items() if k != "position_ids"}

    def _keep_head_input(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._head_input = args[0]

    def _take_head_input(self) -> Tensor:
        hidden, self._head_input = self._head_input, None
        assert hidden is not None, "the model did not call its vocabulary head"
        return hidden


def decoder_inputs(sequences: Sequences) -> dict[str, Tensor]:
    """Prompt and response in one row, for a forward pass that predicts every response token.

    The last token predicts nothing that is asked for, so it is left out: (B, P + R − 1).
    """
    ids = torch.cat([sequences.prompts.ids, sequences.response_ids], dim=1)[:, :-1]
    # What follows a response cannot be seen from within it, so only the prompt's padding needs a mask.
    shown = torch.ones_like(sequences.response_mask)
    return _with_positions(ids, torch.cat([sequences.prompts.mask, shown], dim=1)[:, :-1])


def prompt_inputs(prompts: Prompts) -> dict[str, Tensor]:
    """The prompts alone: (B, P)."""
    return _with_positions(prompts.ids, prompts.mask)


def _with_positions(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Positions count tokens, not columns; without padding there is no mask, and attention takes its fast path."""
    inputs = {"input_ids": ids, "position_ids": (mask.cumsum(1) - 1).clamp_(min=0)}
    if not bool(mask.all()):
        inputs["attention_mask"] = mask.long()
    return inputs


def _next_inputs(inputs: dict[str, Tensor], drawn: Tensor, positions: Tensor) -> dict[str, Tensor]:
    """One token a row, for the step after; `positions` is (B, 1)."""
    following = {"input_ids": drawn.unsqueeze(1), "position_ids": positions}
    if "attention_mask" in inputs:
        mask = inputs["attention_mask"]
        following["attention_mask"] = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return following


def _can_select_rows(cache: Any) -> bool:
    return all(hasattr(layer, "batch_select_indices") for layer in cache.layers)


def disable_dropout(model: nn.Module) -> None:
    """Makes training mode compute what evaluation mode does.

    Dropout would make the ratio of the first minibatch differ from 1. Evaluation mode is no way out, for it turns
    gradient checkpointing off. Beside `nn.Dropout` there are probabilities kept as plain numbers
    (`attention_dropout` of Llama and Qwen, `layerdrop` of OPT and BART).
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _check_is_supported(model: Any) -> None:
    kind = type(model).__name__
    if model.config.is_encoder_decoder:
        raise ConfigError(f"the policy is a {kind}, an encoder-decoder; decoder-only models can be trained")
    if getattr(model, "_is_stateful", False):
        raise ConfigError(f"the policy is a {kind}, whose recurrent state knows no padding; use an attention model")
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise ConfigError(f"the policy is a {kind}, which cannot compute logits for the response alone")
