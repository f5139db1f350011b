"""LoRA by peft: adapters that are trained in a model's place, and the model as it is without them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as TARGETS_OF_FAMILIES
from safetensors.torch import load_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from ppo_client.ppo.config import LoRAConfig
from ppo_client.ppo.errors import CheckpointError, ConfigError
from ppo_client.ppo.seeds import Purpose, numpy_generator

if TYPE_CHECKING:
    from ppo_client.ppo.models.sequences import Prompts, Sequences
    from ppo_client.ppo.policy import Policy, Reading, Samples

_WEIGHTS = "adapter_model.safetensors"


class AdapterOff:
    """A policy without its adapter: the model it started from, with no memory of its own."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def __call__(self, sequences: Sequences) -> Reading:
        """As Policy.forward."""
        with self._off():
            output: Reading = self._policy(sequences)
        return output

    def sample(self, prompts: Prompts, uniforms: Tensor) -> Samples:
        """As Policy.sample."""
        with self._off():
            return self._policy.sample(prompts, uniforms)

    @contextmanager
    def _off(self) -> Iterator[None]:
        model: Any = self._policy.model
        model.disable_adapters()
        try:
            yield
        finally:
            model.enable_adapters()


def adapter_base(place: str) -> str | None:
    """The model that the adapter in the directory `place` is for; None if it holds no adapter."""
    path = Path(place) / "adapter_config.json"
    if not path.is_file():
        return None
    try:
        base = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{path} does not name the adapter's base model: {error!r}") from error
    return str(base)


def merged(base: Any, place: str) -> Any:
    """The model `base` with the adapter in `place` added to its weights: a plain model again, which can be trained."""
    if not (Path(place) / _WEIGHTS).is_file():
        raise ConfigError(f"{place} has an adapter_config.json and no {_WEIGHTS}")
    try:
        model = PeftModel.from_pretrained(base, place).merge_and_unload()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"the adapter in {place} cannot be merged: {error}") from error
    return model.requires_grad_(True)  # peft froze what lies below the adapter


def add_adapter(model: Any, config: LoRAConfig, seed: int) -> None:
    """Puts a new adapter into `model`, which computes what it did before; only the adapter has gradients then.

    Raises ConfigError where the layers to adapt are unknown or absent.
    """
    kind = model.config.model_type
    targets: Any = list(config.target_modules) or TARGETS_OF_FAMILIES.get(kind)
    if targets is None:
        raise ConfigError(f'no layers to adapt are known for {kind}: set lora.target_modules, for example "all-linear"')
    adapter = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        # GPT-2 keeps its matrices transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(numpy_generator(seed, Purpose.ADAPTER).integers(2**62)))
            model.add_adapter(adapter)
    except ValueError as error:
        raise ConfigError(f"lora.target_modules: {error}") from error
    for parameter in model.parameters():
        if parameter.requires_grad:  # whatever the weights below it are
            parameter.data = parameter.data.float()


def plain_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Names and weights of `model`, tied ones once, as they would be with its adapter merged; it stays as it is."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            continue
        adapted, is_adapted, rest = name.partition(".base_layer.")
        if not is_adapted:
            yield name, parameter.detach()
            continue
        weight = parameter.detach()
        if rest == "weight":
            layer = model.get_submodule(adapted)
            for adapter in layer.active_adapters:
                weight = weight + layer.get_delta_weight(adapter).detach().to(weight.dtype)
        yield f"{adapted}.{rest}", weight


def load_adapter(model: Any, place: Path) -> None:
    """Puts into the adapter of `model` what was saved in `place`. Raises CheckpointError if it is not the same."""
    try:
        saved = load_file(place / _WEIGHTS)
        tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in saved.items()}
        result = set_peft_model_state_dict(model, tensors)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the adapter in {place} cannot be read: {error}") from error
    missing = [name for name in result.missing_keys if "lora_" in name]
    if missing or result.unexpected_keys:
        raise CheckpointError(
            f"the adapter in {place} is not the model's: it lacks {missing}, and has {result.unexpected_keys} besides"
        )
