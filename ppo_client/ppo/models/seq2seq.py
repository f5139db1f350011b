"""Encoder-decoder policies: the encoder reads the prompt, once, and the decoder writes a text of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from ppo_client.ppo.errors import ConfigError
from ppo_client.ppo.models.distribution import SamplingRule
from ppo_client.ppo.models.sequences import Prompts, Sequences
from ppo_client.ppo.policy import Decoding, Policy


class Seq2SeqPolicy(Policy):
    """T5, FLAN-T5, BART and their like."""

    continues_prompt = False

    def __init__(self, model: Any, rule: SamplingRule, pad_id: int) -> None:
        super().__init__(model, rule, pad_id)
        self.start_id = _start_id(model)

        # Not where the vocabulary head reads them: T5 scales them down on the way there.
        model.get_decoder().register_forward_hook(self._after_decoder)

    def num_positions(self, prompt_tokens: int, response_tokens: int) -> int:
        return max(prompt_tokens, response_tokens)

    def trunk(self, model: Any) -> nn.Module:
        return nn.ModuleDict({"encoder": model.get_encoder(), "decoder": model.get_decoder()})

    def hidden_states(self, trunk: Any, sequences: Sequences) -> Tensor:
        inputs = encoder_inputs(sequences.prompts)
        hidden: Tensor = trunk["decoder"](
            input_ids=self._decoder_ids(sequences),
            encoder_hidden_states=trunk["encoder"](**inputs).last_hidden_state,
            encoder_attention_mask=inputs.get("attention_mask"),
            use_cache=False,
        ).last_hidden_state
        return hidden

    def _after_decoder(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self._keep_hidden(output[0])

    def _read(self, sequences: Sequences) -> Tensor:
        inputs = {**encoder_inputs(sequences.prompts), "decoder_input_ids": self._decoder_ids(sequences)}
        logits: Tensor = self.model(**inputs, use_cache=False).logits
        return logits

    def _decoder_ids(self, sequences: Sequences) -> Tensor:
        """What the decoder reads to predict each response token: all that precede it, (B, R)."""
        ids = sequences.response_ids
        return torch.cat([ids.new_full((len(ids), 1), self.start_id), ids[:, :-1]], dim=1)

    def _begin(self, prompts: Prompts) -> Decoding:
        inputs = encoder_inputs(prompts)
        encoded = self.model.get_encoder()(**inputs).last_hidden_state
        mask = {name: tensor for name, tensor in inputs.items() if name == "attention_mask"}
        start = prompts.ids.new_full((len(prompts.ids), 1), self.start_id)
        # They grow by layers as needed: a cache made for the configuration counts the encoder's.
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        return Decoding({**mask, "encoded": encoded, "decoder_input_ids": start}, cache)

    def _step(self, decoding: Decoding) -> Tensor:
        inputs = dict(decoding.inputs)
        encoder_outputs = BaseModelOutput(last_hidden_state=inputs.pop("encoded"))
        logits: Tensor = self.model(
            **inputs, encoder_outputs=encoder_outputs, past_key_values=decoding.cache, use_cache=True
        ).logits
        return logits

    def _append(self, decoding: Decoding, ids: Tensor) -> None:
        decoding.inputs = {**decoding.inputs, "decoder_input_ids": ids.unsqueeze(1)}


def encoder_inputs(prompts: Prompts) -> dict[str, Tensor]:
    """The prompts padded on the right, for an encoder counts positions from the first column; no mask if none is."""
    order = (~prompts.mask).long().argsort(dim=1, stable=True)
    mask = prompts.mask.gather(1, order)
    inputs = {"input_ids": prompts.ids.gather(1, order)}
    if not bool(mask.all()):
        inputs["attention_mask"] = mask.long()
    return inputs


def _start_id(model: Any) -> int:
    """What the decoder reads before the first token."""
    for config in (model.config, model.generation_config):
        start = getattr(config, "decoder_start_token_id", None)
        if isinstance(start, int):
            return start
    raise ConfigError(
        f"the policy is a {type(model).__name__}, and neither its config.json nor its generation_config.json names a "
        "decoder_start_token_id: add it"
    )
