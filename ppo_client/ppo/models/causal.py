"""Decoder-only policies: prompt and response are one row, the response goes on where the prompt ends."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ppo_client.ppo.errors import ConfigError
from ppo_client.ppo.models.distribution import SamplingRule
from ppo_client.ppo.models.sequences import Prompts, Sequences
from ppo_client.ppo.policy import Decoding, Policy


class CausalPolicy(Policy):
    """GPT-2, Llama, Qwen, Mistral and their like."""

    continues_prompt = True

    def __init__(self, model: Any, rule: SamplingRule, pad_id: int) -> None:
        super().__init__(model, rule, pad_id)
        kind = type(model).__name__
        if getattr(model, "_is_stateful", False):
            raise ConfigError(f"the policy is a {kind}, whose recurrent state knows no padding; use an attention model")
        if "logits_to_keep" not in inspect.signature(model.forward).parameters:
            raise ConfigError(f"the policy is a {kind}, which cannot compute logits for the response alone")

        self._takes_positions = _takes_positions(model)

        # Where the vocabulary head reads them, so for the response's positions only.
        model.get_output_embeddings().register_forward_pre_hook(self._before_head)

    def num_positions(self, prompt_tokens: int, response_tokens: int) -> int:
        return prompt_tokens + response_tokens

    def trunk(self, model: Any) -> nn.Module:
        trunk: nn.Module = model.base_model
        return trunk

    def hidden_states(self, trunk: Any, sequences: Sequences) -> Tensor:
        inputs = _accepted(_takes_positions(trunk), whole_inputs(sequences))
        hidden: Tensor = trunk(**inputs, use_cache=False).last_hidden_state
        return hidden[:, -sequences.response_ids.shape[1] :]

    def _before_head(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._keep_hidden(args[0])

    def _read(self, sequences: Sequences) -> Tensor:
        inputs = _accepted(self._takes_positions, whole_inputs(sequences))
        num_tokens = sequences.response_ids.shape[1]
        logits: Tensor = self.model(**inputs, logits_to_keep=num_tokens, use_cache=False).logits
        return logits

    def _begin(self, prompts: Prompts) -> Decoding:
        return Decoding(_with_positions(prompts.ids, prompts.mask), DynamicCache(config=self.model.config))

    def _step(self, decoding: Decoding) -> Tensor:
        inputs = _accepted(self._takes_positions, decoding.inputs)
        logits: Tensor = self.model(**inputs, past_key_values=decoding.cache, use_cache=True, logits_to_keep=1).logits
        return logits

    def _append(self, decoding: Decoding, ids: Tensor) -> None:
        before = decoding.inputs
        decoding.inputs = {"input_ids": ids.unsqueeze(1), "position_ids": before["position_ids"][:, -1:] + 1}
        if "attention_mask" in before:
            mask = before["attention_mask"]
            decoding.inputs["attention_mask"] = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)


def whole_inputs(sequences: Sequences) -> dict[str, Tensor]:
    """Prompt and response in one row, for a forward pass that predicts every response token.

    The last token predicts nothing that is asked for, so it is left out: (B, P + R − 1).
    """
    ids = torch.cat([sequences.prompts.ids, sequences.response_ids], dim=1)[:, :-1]
    # What follows a response cannot be seen from within it, so only the prompt's padding needs a mask.
    shown = torch.ones_like(sequences.response_mask)
    return _with_positions(ids, torch.cat([sequences.prompts.mask, shown], dim=1)[:, :-1])


def _with_positions(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Positions count tokens, not columns; without padding there is no mask, and attention takes its fast path."""
    inputs = {"input_ids": ids, "position_ids": (mask.cumsum(1) - 1).clamp_(min=0)}
    if not bool(mask.all()):
        inputs["attention_mask"] = mask.long()
    return inputs


def _takes_positions(model: Any) -> bool:
    """Some models have none, such as those with ALiBi."""
    return "position_ids" in inspect.signature(model.forward).parameters


def _accepted(takes_positions: bool, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return inputs if takes_positions else {k: v for k, v in inputs.items() if k != "position_ids"}
