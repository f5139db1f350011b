"""DeepSpeed ZeRO: its engine shares out what learns, and steps; the optimizer's state goes in and out whole.

The engine holds float32 weights, with autocast where a run wants bf16, so that stages 1 to 3 learn what one process
learns. Stages 1 and 2 leave the weights whole; for stage 3 a whole copy writes and is saved (sharding.py).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from packaging.version import Version
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from ppo_client.ppo.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from ppo_client.ppo.config import PPOConfig

# Older ones make the step with a float32 gradient that is not finite.
_OLDEST = "0.19.8"
_MOMENTS = ("exp_avg", "exp_avg_sq")


def make_zero_accelerator(processes: InitProcessGroupKwargs) -> Accelerator:
    """Raises ConfigError where DeepSpeed is missing, too old, or left out by accelerate."""
    try:
        found = version("deepspeed")
    except PackageNotFoundError:
        raise ConfigError(f'DeepSpeed is configured, and not installed: pip install "deepspeed>={_OLDEST}"') from None
    if Version(found) < Version(_OLDEST):
        raise ConfigError(
            f"DeepSpeed {found} makes steps with gradients that are not finite: install {_OLDEST} or newer, or use "
            "FSDP, see examples/accelerate/fsdp.yaml"
        )
    try:
        accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[processes])
    except ValueError as error:
        raise ConfigError(f"the configuration of DeepSpeed: {error}") from error
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        raise ConfigError(
            "DeepSpeed is configured, and accelerate does without it here: start the processes with `accelerate "
            "launch` or torchrun, on accelerators (no ACCELERATE_USE_CPU, no use_cpu)"
        )
    # Else transformers loads models in shares, and each process is to have them whole at first.
    unset_hf_deepspeed_config()
    return accelerator


def engine_settings(given: Mapping[str, Any], config: PPOConfig) -> dict[str, Any]:
    """DeepSpeed's settings `given`, with what the run decides put in for "auto". Raises ConfigError for others."""
    ppo = config.ppo
    decided: dict[str, tuple[Any, str]] = {
        "gradient_accumulation_steps": (1, "ppo.micro_batch_size"),
        "gradient_clipping": (ppo.max_grad_norm if math.isfinite(ppo.max_grad_norm) else 0.0, "ppo.max_grad_norm"),
        # Of no effect but on DeepSpeed's own timings: it is told of micro-batches one by one.
        "train_micro_batch_size_per_gpu": (1, "ppo.micro_batch_size"),
        "train_batch_size": ("auto", "ppo.batch_size"),
    }
    wrong = [
        f"{name} = {given[name]}, which {setting} decides ({value}): leave it out"
        for name, (value, setting) in decided.items()
        if given.get(name, "auto") not in ("auto", value)
    ]
    for name, setting in {"optimizer": "ppo.learning_rate and what follows it", "scheduler": "ppo.schedule"}.items():
        if name in given:
            wrong.append(f"{name}, which {setting} decide: leave it out")
    for name in ("fp16", "bf16", "torch_autocast"):
        if given.get(name, {}).get("enabled", False) not in (False, "auto"):
            wrong.append(f"{name}, which train.mixed_precision decides: leave it out")
    stage = given.get("zero_optimization", {}).get("stage")
    if stage not in (1, 2, 3):
        wrong.append(f"zero_optimization.stage = {stage}: it must be 1, 2 or 3")
    for name in ("offload_optimizer", "offload_param"):
        if given.get("zero_optimization", {}).get(name, {}).get("device") == "nvme":
            wrong.append(f"{name}.device = nvme, from where nothing gets into a checkpoint: take cpu")
    if config.critic.learning_rate:
        raise ConfigError("critic.learning_rate is not for DeepSpeed: remove it, or use FSDP")
    if wrong:
        raise ConfigError("the configuration of DeepSpeed says " + "; ".join(wrong))
    settings = {**given, **{name: value for name, (value, _) in decided.items()}}
    # Else accelerate takes another optimizer where it is offloaded, and drops its betas and epsilon.
    settings["zero_force_ds_cpu_optimizer"] = False
    if config.train.mixed_precision == "bf16":
        # No modules are "safe" to DeepSpeed, else their gradients travel in bf16.
        settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return settings


def is_engine(learner: nn.Module) -> bool:
    """Whether DeepSpeed holds it."""
    deepspeed = sys.modules.get("deepspeed")
    return deepspeed is not None and isinstance(learner, deepspeed.DeepSpeedEngine)


def is_share(parameter: nn.Parameter) -> bool:
    """Whether this process has but a part of it: stage 3."""
    return hasattr(parameter, "ds_id")


def whole(parameter: nn.Parameter) -> Tensor:
    """A parameter that `is_share`, in float32. To be called in all processes."""
    from deepspeed.utils import safe_get_full_fp32_param

    weight: Tensor = safe_get_full_fp32_param(parameter)
    return weight


@dataclass(frozen=True, slots=True)
class EngineStepper:
    """Stepper by DeepSpeed's engine, which clips by `gradient_clipping`, and makes no step that is not finite."""

    engine: Any

    @contextmanager
    def micro_batch(self, *, is_last: bool) -> Iterator[None]:
        self.engine.set_gradient_accumulation_boundary(is_last)
        yield

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)

    def step(self, rate: float) -> tuple[float, ...]:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        self.engine.step()
        return (float(self.engine.get_global_grad_norm()) if self.engine.was_step_applied() else math.inf,)

    def discard(self) -> None:
        from deepspeed.utils import logger, safe_get_full_grad, safe_set_full_grad

        # The engine forgets a gradient by a step alone, so by one that it does not make.
        first = _trained(self.engine)[0]
        safe_set_full_grad(first, torch.full_like(safe_get_full_grad(first), math.nan))
        logger.disabled = True  # it would warn of what is meant
        try:
            self.engine.step()
        finally:
            logger.disabled = False


def zero_optimizer_state(engine: Any) -> dict[str, Any]:
    """As of the optimizer in one process without DeepSpeed; in the main process. To be called in all."""
    from deepspeed.utils import safe_get_full_optimizer_state

    optimizer, trained = engine.optimizer.optimizer, _trained(engine)
    group = {name: optimizer.param_groups[0][name] for name in optimizer.defaults}
    group["params"] = list(range(len(trained)))
    state: dict[int, dict[str, Tensor]] = {}
    if optimizer.state:
        num_steps = next(iter(optimizer.state.values()))["step"].cpu()
        for number, parameter in enumerate(trained):
            moments = {name: safe_get_full_optimizer_state(parameter, name) for name in _MOMENTS}
            if engine.global_rank == 0:
                state[number] = {"step": num_steps.clone(), **{n: moment.cpu() for n, moment in moments.items()}}
    return {"state": state, "param_groups": [group]}


def load_zero_optimizer_state(engine: Any, state: dict[str, Any]) -> None:
    """What `zero_optimizer_state` gave, or one process's optimizer. Raises CheckpointError for FSDP's."""
    moments: dict[Any, dict[str, Tensor]] = state["state"]
    if not moments:
        return
    if 0 not in moments:
        raise CheckpointError(
            "the checkpoint was written with FSDP, and its optimizer's state cannot be shared out by DeepSpeed: resume "
            "with FSDP, or start a new run from the checkpoint's policy"
        )
    sharer = engine.optimizer
    is_stage_3 = engine.zero_optimization_stage() == 3
    for share in sharer.fp32_partitioned_groups_flat if is_stage_3 else sharer.single_partition_of_fp32_groups:
        empty = {name: torch.zeros_like(share) for name in _MOMENTS}
        sharer.optimizer.state[share] = {"step": moments[0]["step"].to(share.device, copy=True), **empty}
    if not is_stage_3:
        sharer._lazy_init_hp_params_optimizer_state()  # as after a first step: parameters learn where their moments are
    for number, parameter in enumerate(_trained(engine)):
        for name in _MOMENTS:
            _set_moment(engine, parameter, name, moments[number][name])


def _set_moment(engine: Any, parameter: nn.Parameter, name: str, value: Tensor) -> None:
    from deepspeed.utils import (
        safe_get_local_optimizer_state,
        safe_set_full_optimizer_state,
        safe_set_local_optimizer_state,
    )

    if not is_share(parameter):
        safe_set_full_optimizer_state(parameter, value, name)
        return
    # By hand: for a parameter that cannot be shared out evenly, DeepSpeed's own function reads beyond its end.
    size = safe_get_local_optimizer_state(parameter, name).numel()
    flat = pad(value.flatten(), (0, size * engine.dp_world_size - value.numel()))
    own = flat[size * engine.global_rank :][:size]
    safe_set_local_optimizer_state(parameter, own, name)


def _trained(engine: Any) -> list[nn.Parameter]:
    return [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
