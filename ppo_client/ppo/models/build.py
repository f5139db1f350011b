"""What a run is made of, loaded from its places: language models, tokenizer, sampling rule; and checks between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.utils import logging as transformers_logging

from ppo_client.ppo.config import RolloutConfig
from ppo_client.ppo.errors import ConfigError
from ppo_client.ppo.models.causal import CausalPolicy
from ppo_client.ppo.models.distribution import SamplingRule
from ppo_client.ppo.models.lora import adapter_base, merged
from ppo_client.ppo.models.seq2seq import Seq2SeqPolicy
from ppo_client.ppo.policy import Policy, disable_dropout
from ppo_client.ppo.prompts import Prompt

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
_MISSING_SHOWN = 3


def chosen_device(name: str) -> torch.device:
    """The device of this name; empty: a CUDA device where there is one, else the CPU. Raises ConfigError."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device: nothing can be computed on {name!r}: {str(error).splitlines()[0]}") from error
    return device


def load_tokenizer(place: str) -> Any | None:
    """The tokenizer in `place`; None if there is none, which is fine where prompts and rewards are token ids."""
    if Path(place).is_dir() and not any((Path(place) / name).exists() for name in _TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise ConfigError(_unloadable(place, error)) from error


def policy_class(place: str) -> type[Policy]:
    """How the language model in `place` reads a prompt and a response."""
    return Seq2SeqPolicy if _load_config(adapter_base(place) or place).is_encoder_decoder else CausalPolicy


def load_language_model(place: str, dtype: str) -> Any:
    """A language model from safetensors; a LoRA adapter is merged into its base. Raises ConfigError."""
    base = adapter_base(place)
    if base is not None:
        return merged(load_language_model(base, dtype), place)
    config = _load_config(place)
    loader = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    try:
        model, info = loader.from_pretrained(
            place, config=config, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise ConfigError(_unloadable(place, error)) from error
    if missing := sorted(info["missing_keys"]):
        # transformers draws them at random: policy and reference would not begin as the same model.
        more = f" and {len(missing) - _MISSING_SHOWN} more" if len(missing) > _MISSING_SHOWN else ""
        what = ", ".join(config.architectures or ["model of an unknown kind"])
        raise ConfigError(
            f"{place} lacks {', '.join(missing[:_MISSING_SHOWN])}{more}: its files are of a {what}, and the policy is "
            f"to be a whole language model ({type(model).__name__})"
        )
    return model


def load_policy(place: str, dtype: str, rollout: RolloutConfig, tokenizer: Any | None) -> Policy:
    """The policy at `place`, with the sampling rule of `rollout`."""
    return make_policy(prepared(load_language_model(place, dtype)), rollout, tokenizer)


def load_reference(place: str, dtype: str, policy: Policy) -> Policy:
    """The language model at `place` as what `policy` is compared with: under its sampling rule, whatever EOS it names.

    EOS that one masks and the other does not would make a log-ratio of fp32's lowest number.
    """
    model = prepared(load_language_model(place, dtype))
    return type(policy)(model, policy.rule, policy.pad_id)


def make_policy(model: Any, rollout: RolloutConfig, tokenizer: Any | None) -> Policy:
    """Of a prepared model."""
    rule = sampling_rule(model, tokenizer, rollout)
    candidates = (getattr(tokenizer, "pad_token_id", None), *rule.eos_ids, 0)
    pad_id = next(i for i in candidates if i is not None and i < vocab_size(model))
    kind = Seq2SeqPolicy if model.config.is_encoder_decoder else CausalPolicy
    return kind(model, rule, pad_id)


def prepared(model: Any) -> Any:
    """The same model, made to compute in training what it does in evaluation: without dropout; and faster."""
    disable_dropout(model)
    _fuse_gelu(model)
    _trust_with_masks(model)
    return model


def sampling_rule(model: Any, tokenizer: Any | None, rollout: RolloutConfig) -> SamplingRule:
    """Temperature and EOS of the run. Raises ConfigError if responses could end, and nothing says how."""
    candidates = [model.generation_config.eos_token_id, getattr(tokenizer, "eos_token_id", None)]
    ids = {i for c in candidates for i in (c if isinstance(c, list) else [c]) if i is not None}
    eos_ids = tuple(sorted(i for i in ids if i < vocab_size(model)))
    if not eos_ids and rollout.min_response_tokens < rollout.max_response_tokens:
        raise ConfigError(
            "neither the model's generation_config.json nor the tokenizer names an EOS token, so no response could "
            "end: set rollout.min_response_tokens = rollout.max_response_tokens if that is meant"
        )
    return SamplingRule(rollout.temperature, eos_ids, rollout.min_response_tokens)


def vocab_size(model: Any) -> int:
    size: int = model.get_output_embeddings().weight.shape[0]
    return size


def hidden_size(model: Any) -> int:
    """Width of what the vocabulary head reads; not always `config.hidden_size` (OPT-350m)."""
    size: int = model.get_output_embeddings().weight.shape[1]
    return size


def check_knows(name: str, model: Any, policy: Any) -> None:
    """Raises ConfigError where `model`, which `name` names, has no embedding of a token that `policy` can write."""
    num_known, num_written = model.get_input_embeddings().weight.shape[0], vocab_size(policy)
    if num_known < num_written:
        raise ConfigError(
            f"{name}: it knows {num_known} tokens, and the policy writes {num_written}: it must be of the policy's "
            "family, with embeddings for as many"
        )


def check_fits(
    policy: Policy,
    prompts: Sequence[Prompt],
    max_response_tokens: int,
    others: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Raises ConfigError where a prompt and its response exceed the model's positions or vocabulary.

    `others`: the models that read them, too, by what names them; they `check_knows` the policy's vocabulary.
    """
    longest = max(len(prompt.token_ids) for prompt in prompts)
    for name, model in {"the policy": policy.model, **others}.items():
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and policy.num_positions(longest, max_response_tokens) > limit:
            raise ConfigError(
                f"the longest prompt has {longest} tokens, a response up to {max_response_tokens}, and {name} "
                f"{limit} positions: lower max_prompt_tokens or max_response_tokens"
            )
    largest = max(max(prompt.token_ids) for prompt in prompts)
    if largest >= vocab_size(policy.model):
        raise ConfigError(
            f"a prompt has the token id {largest}, and the policy {vocab_size(policy.model)} tokens: "
            "the tokenizer is not the model's"
        )


def quiet_transformers() -> None:
    """No progress bars for loading and saving models; for commands, which show their own."""
    transformers_logging.disable_progress_bar()


def _load_config(place: str) -> Any:
    if Path(place).exists() and not (Path(place) / "config.json").is_file():
        raise ConfigError(f"{place} is not a model directory: it has no config.json")
    try:
        return AutoConfig.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise ConfigError(_unloadable(place, error)) from error


def _unloadable(place: str, error: Exception) -> str:
    if not Path(place).exists():
        return f"there is no directory {place}, and no model of that name could be had: {str(error).splitlines()[0]}"
    return f"{place} cannot be loaded: {error}"


def _fuse_gelu(model: nn.Module) -> None:
    """GPT-2's activation in one operation, not eight: the same formula, and a tenth of the update's time on a CPU."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def _trust_with_masks(model: nn.Module) -> None:
    """Prompts without padding get no mask on purpose, and what pads a response cannot be seen from within it.

    GPT-2 and others would look at the ids in each forward pass, for which a GPU must be waited for, and warn.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.warn_if_padding_and_no_attention_mask = _pass


def _pass(*_: Any) -> None:
    """In place of transformers' check of the mask."""
