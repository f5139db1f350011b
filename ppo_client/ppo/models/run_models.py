"""The models of a run: policy, critic and reference, by its settings alone or with what a checkpoint holds of them."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ppo_client.ppo.config import PPOConfig
from ppo_client.ppo.errors import CheckpointError, ConfigError
from ppo_client.ppo.models.build import (
    check_knows,
    hidden_size,
    load_language_model,
    load_reference,
    load_tokenizer,
    make_policy,
    policy_class,
    prepared,
)
from ppo_client.ppo.models.critic import ActorCritic, SeparateCritic, SharedCritic
from ppo_client.ppo.models.lora import AdapterOff, adapter_base, add_adapter, load_adapter
from ppo_client.ppo.models.reward_trunk import RewardModel, check_same_tokenizer, load_reward_model
from ppo_client.ppo.policy import Policy

_CRITIC_FILE = "critic.safetensors"


@dataclass(frozen=True, slots=True)
class Models:
    """What is trained, and what it must stay close to."""

    actor_critic: ActorCritic
    reference: Policy | AdapterOff
    """The reference policy, which is never trained"""
    digests: dict[str, str]
    """SHA-256 of the weights that stay as they are and that no checkpoint holds, by the setting that names them"""
    readers: dict[str, Any]
    """Models with positions of their own that read what the policy writes, by the setting that names them"""


@dataclass(frozen=True, slots=True)
class _CriticStart:
    """What a separate critic begins with."""

    model: Any
    """With the trunk in it"""
    hidden_size: int
    setting: str = ""
    """Which names weights that no other model has; empty: they are the policy's"""
    reward_model: RewardModel | None = None
    """Whose score head is the value head's start"""


def load_models(config: PPOConfig, tokenizer: Any | None, device: torch.device, saved: Path | None = None) -> Models:
    """`saved`: the `policy` directory of a checkpoint. Raises ConfigError, CheckpointError."""
    policy, lora = config.policy, config.lora
    if lora.rank and adapter_base(policy.model) is not None:
        raise ConfigError(
            f"{policy.model} is an adapter, and its checkpoints would be adapters of an adapter: merge it first "
            "(lora.merge), or set lora.rank = 0"
        )
    start = policy.model if lora.rank or saved is None else str(saved)
    model = prepared(load_language_model(start, policy.dtype))
    critic_start = _critic_start(config, model, tokenizer)
    digests: dict[str, str] = {}
    if lora.rank:
        digests = _adapt(config, model, critic_start, saved)
    trained = make_policy(model, config.rollout, tokenizer)
    actor_critic = ActorCritic(trained, _make_critic(critic_start, trained))
    if saved is not None:
        load_critic(actor_critic, saved)
    if config.policy.gradient_checkpointing:
        for learner in (model, critic_start.model) if critic_start is not None else (model,):
            checkpoint_activations(learner)
    reference_place = policy.reference or ("" if lora.rank else policy.model)
    readers = {critic_start.setting: critic_start.model} if critic_start is not None and critic_start.setting else {}
    if not reference_place:
        return Models(actor_critic.to(device), AdapterOff(trained), digests, readers)
    if policy_class(reference_place) is not type(trained):
        raise ConfigError(f"policy.reference: {reference_place} is of another architecture than {policy.model}")
    reference = load_reference(reference_place, policy.dtype, trained)
    check_knows("policy.reference", reference.model, model)
    digests["policy.reference" if policy.reference else "policy.model"] = weights_digest(reference.model)
    readers["policy.reference"] = reference.model
    return Models(actor_critic.to(device), reference.requires_grad_(False).eval().to(device), digests, readers)


def checkpoint_activations(model: Any) -> None:
    """Has the layers compute their activations again in the backward pass instead of keeping them."""
    # The older name, where transformers does not have the newer yet.
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()


def save_policy(actor_critic: ActorCritic, place: Path) -> None:
    """A plain model directory, or an adapter's, with the critic's tensors beside."""
    actor_critic.policy.model.save_pretrained(place)
    tensors = {name: tensor.detach().contiguous() for name, tensor in _trained(actor_critic.critic).items()}
    save_file(tensors, place / _CRITIC_FILE)


def load_critic(actor_critic: ActorCritic, place: Path) -> None:
    """Into the critic what `save_policy` wrote to `place`."""
    path = place / _CRITIC_FILE
    try:
        tensors = load_file(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    parameters = _trained(actor_critic.critic)
    if {name: value.shape for name, value in parameters.items()} != {n: v.shape for n, v in tensors.items()}:
        raise CheckpointError(f"{path} holds another critic than the settings name")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def trained_share(actor_critic: ActorCritic) -> tuple[int, int]:
    """How many parameters have gradients, value head included, and how many there are."""
    parameters = list(actor_critic.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of a model's parameters as they were loaded."""
    weights = hashlib.sha256()
    for name, parameter in model.named_parameters():
        weights.update(name.encode())
        weights.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return weights.hexdigest()


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters with gradients, each once though it may have several places."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def _adapt(config: PPOConfig, model: Any, critic_start: _CriticStart | None, saved: Path | None) -> dict[str, str]:
    """Puts adapters into what is to be trained; returns digests of the weights below them."""
    digests = {"policy.model": weights_digest(model)}
    add_adapter(model, config.lora, config.train.seed)
    if saved is not None:
        load_adapter(model, saved)
    if critic_start is not None:
        if critic_start.setting:
            digests[critic_start.setting] = weights_digest(critic_start.model)
        add_adapter(critic_start.model, config.lora, config.train.seed)
    return digests


def _make_critic(start: _CriticStart | None, policy: Policy) -> SharedCritic | SeparateCritic:
    if start is None:
        return SharedCritic(hidden_size(policy.model))
    critic = SeparateCritic(policy.trunk(start.model), policy.hidden_states, start.hidden_size)
    if start.reward_model is not None:
        critic.head.start_from(start.reward_model.score, start.reward_model.before_score)
    return critic


def _critic_start(config: PPOConfig, model: Any, tokenizer: Any | None) -> _CriticStart | None:
    """`model` is the policy's, before it has an adapter. None: the critic shares the policy's trunk."""
    critic, dtype = config.critic, config.policy.dtype
    if critic.kind == "shared":
        return None
    if critic.init:
        found = load_reward_model(critic.init, dtype, is_encoder_decoder=model.config.is_encoder_decoder)
        check_same_tokenizer(critic.init, tokenizer, load_tokenizer(critic.init))
        check_knows("critic.init", found.model, model)
        return _CriticStart(prepared(found.model), found.score.in_features, "critic.init", found)
    if config.lora.rank and not critic.model:
        # Only adapters are trained, so the critic's modules are its own, and the weights below them the policy's.
        shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        return _CriticStart(copy.deepcopy(model, shared), hidden_size(model))
    place = critic.model or config.policy.model
    language_model = prepared(load_language_model(place, dtype))
    if language_model.config.is_encoder_decoder != model.config.is_encoder_decoder:
        raise ConfigError(f"critic.model: {place} is of another architecture than the policy, {config.policy.model}")
    check_knows("critic.model", language_model, model)
    return _CriticStart(language_model, hidden_size(language_model), "critic.model" if critic.model else "")
