"""FSDP, ZeRO: what learns is shared out over the processes; a whole copy of it, in each, writes, is read, and is saved.

Sampling takes a forward pass for each token, as many as the process's own responses need. On shards each would gather
every weight anew, and processes would wait for one another; a copy costs the weights alone, while gradients, Adam's two
moments and the activations' weights are shared out.
"""

from __future__ import annotations

import copy
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from ppo_client.ppo.errors import CheckpointError, ConfigError
from ppo_client.ppo.stepping import PlainStepper, Stepper
from ppo_client.ppo.zero import (
    EngineStepper,
    engine_settings,
    is_engine,
    is_share,
    load_zero_optimizer_state,
    make_zero_accelerator,
    whole,
    zero_optimizer_state,
)

if TYPE_CHECKING:
    from ppo_client.ppo.config import PPOConfig
    from ppo_client.ppo.models.critic import ActorCritic


# How far a process may be behind the others beside its waits for scores: as far as gloo lets it. NCCL, by itself,
# aborts those who have waited for it for 600 s.
_LONGEST_STEP_S = 1800.0
_LONGEST_WAIT_S = 365 * 24 * 3600.0


def make_accelerator(mixed_precision: Literal["no", "bf16"], patience_s: float = 0.0) -> Accelerator:
    """As `accelerate launch` or torchrun configured it. Raises ConfigError for what the trainer cannot do.

    `patience_s`: for so long one process may wait for scores, and all others for that process.
    """
    timeout = timedelta(seconds=_LONGEST_STEP_S + min(patience_s, _LONGEST_WAIT_S))
    processes = InitProcessGroupKwargs(timeout=timeout)
    if _is_on("ACCELERATE_USE_DEEPSPEED"):
        return make_zero_accelerator(processes)
    if _is_on("ACCELERATE_USE_MEGATRON_LM"):
        raise ConfigError("Megatron-LM is not supported: see examples/accelerate/fsdp.yaml for what is")
    wants_shards = _is_on("ACCELERATE_USE_FSDP")
    if wants_shards:
        # Else transformers leaves the weights out in all processes but one.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    accelerator = Accelerator(mixed_precision=mixed_precision, kwargs_handlers=[processes])
    if (num_steps := accelerator.gradient_accumulation_steps) != 1:
        # Accelerate divides each loss by it, and a minibatch's losses add up to its mean already.
        raise ConfigError(
            f"accelerate is told to accumulate gradients over {num_steps} steps (gradient_accumulation_steps in its "
            "configuration, or ACCELERATE_GRADIENT_ACCUMULATION_STEPS), which would divide every gradient by that: "
            "leave it out; ppo.micro_batch_size says how many rows go through a forward pass"
        )
    if wants_shards and accelerator.distributed_type != DistributedType.FSDP:
        raise ConfigError(
            f"FSDP is configured, and accelerate does without it here (processes: {accelerator.num_processes}, "
            f"device: {accelerator.device.type}): it needs several processes with an accelerator each; for one process "
            "or CPUs take FSDP out of the configuration"
        )
    if wants_shards and not accelerator.is_fsdp2:
        raise ConfigError("FSDP 1 is not supported: set fsdp_version: 2, as in examples/accelerate/fsdp.yaml")
    if wants_shards:
        plugin = accelerator.state.fsdp_plugin
        plugin.cpu_ram_efficient_loading = False
        # Autocast does it, for the copy that is read and for the shards alike.
        plugin.mixed_precision_policy = None
    return accelerator


def autocast(accelerator: Accelerator, mixed_precision: Literal["no", "bf16"]) -> torch.autocast:
    """Around whatever is computed. accelerate's own does nothing with DeepSpeed."""
    return torch.autocast(accelerator.device.type, torch.bfloat16, enabled=mixed_precision == "bf16")


def make_learner(accelerator: Accelerator, actor_critic: ActorCritic, config: PPOConfig) -> ActorCritic:
    """What is to be prepared by accelerate and to learn: a copy where weights are shared out, else `actor_critic`."""
    if plugin := accelerator.deepspeed_plugin:
        plugin.deepspeed_config.update(engine_settings(plugin.deepspeed_config, config))
    if not (accelerator.is_fsdp2 or (plugin and plugin.zero_stage == 3)):
        return actor_critic
    shares_trunk = config.critic.kind == "separate" and not (config.critic.model or config.critic.init)
    if accelerator.is_fsdp2 and config.lora.rank and shares_trunk:
        raise ConfigError(
            "with FSDP an adapter's critic cannot share the policy's weights below adapters of its own: set "
            'critic.kind = "shared", or name critic.model'
        )
    learner = copy.deepcopy(actor_critic)
    layers = actor_critic.policy.model._no_split_modules
    learner._no_split_modules = sorted(layers) if layers else None
    return learner


def make_stepper(accelerator: Accelerator, learner: Any, optimizer: Any, config: PPOConfig) -> Stepper:
    """For `learner` and `optimizer` as accelerate prepared them."""
    if is_engine(learner):
        return EngineStepper(learner)
    ratios = (1.0, config.critic.learning_rate / config.ppo.learning_rate) if config.critic.learning_rate else (1.0,)
    parts = accelerator.unwrap_model(learner).parts()
    return PlainStepper(learner, optimizer, accelerator, config.ppo.max_grad_norm, parts, ratios)


@torch.no_grad()
def copy_weights(learner: torch.nn.Module, actor_critic: ActorCritic) -> None:
    """Gives `actor_critic` what `learner` has learnt, if it is a copy. To be called in all processes."""
    for own, learnt in zip(actor_critic.parameters(), learner.parameters(), strict=True):
        if not learnt.requires_grad:
            continue
        if isinstance(learnt, DTensor):
            own.copy_(learnt.full_tensor())
        elif is_share(learnt):
            own.copy_(whole(learnt))


def is_sharded(learner: torch.nn.Module) -> bool:
    """Whether the optimizer's state is shared out over the processes."""
    return is_engine(learner) or any(isinstance(parameter, DTensor) for parameter in learner.parameters())


def optimizer_state(learner: Any, optimizer: Any) -> dict[str, Any]:
    """Whole, in the main process, and on the CPU where it was shared out. To be called in all processes."""
    if is_engine(learner):
        return zero_optimizer_state(learner)
    # Before the first step there is none to share out; asked for it, torch makes a step by zeros, which Adam counts.
    if is_sharded(learner) and optimizer.state:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_optimizer_state_dict(learner, optimizer.optimizer, options=options)
    state: dict[str, Any] = optimizer.state_dict()
    return state


def load_optimizer_state(learner: Any, optimizer: Any, state: dict[str, Any]) -> None:
    """What `optimizer_state` gave. Raises CheckpointError for a state that was not shared out where this one is."""
    by_name = any(isinstance(name, str) for group in state["param_groups"] for name in group["params"])
    if is_engine(learner):
        load_zero_optimizer_state(learner, state)
    elif by_name:
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(learner, optimizer.optimizer, state, options=options)
    elif is_sharded(learner) and state["state"]:
        raise CheckpointError(
            "the checkpoint was written without FSDP, and its optimizer's state cannot be shared out: resume without, "
            "or start a new run from the checkpoint's policy"
        )
    else:
        optimizer.load_state_dict(state)


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"
