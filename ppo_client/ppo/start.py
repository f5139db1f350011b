"""The beginning of a run: a new one, or one that goes on from its latest checkpoint, told what may change by then."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from accelerate.utils import broadcast_object_list, set_seed

from ppo_client.ppo import checkpoint as disk
from ppo_client.ppo.assembly import assemble
from ppo_client.ppo.checkpoint import RunState
from ppo_client.ppo.config import EvaluationConfig, PPOConfig
from ppo_client.ppo.config_file import changed_keys, load_config, to_toml
from ppo_client.ppo.distributed import is_true_anywhere, own_rows
from ppo_client.ppo.errors import CheckpointError, ConfigError
from ppo_client.ppo.inputs import with_absolute_paths
from ppo_client.ppo.kl import coefficient_set
from ppo_client.ppo.run import Run
from ppo_client.ppo.scores.normalize import ScoreNormalizer
from ppo_client.ppo.scores.reward_source import RewardSource
from ppo_client.ppo.setting_changes import ADJUSTABLE, adjustable_settings, setting_changes
from ppo_client.ppo.sharding import load_optimizer_state, make_accelerator
from ppo_client.ppo.staleness import shared_out

# The others decide what is learnt: with them changed it would be another run. ADJUSTABLE do, too, and the log says so.
CHANGEABLE_ON_RESUME = frozenset(
    {
        "policy.gradient_checkpointing",
        "lora.merge",
        "rollout.micro_batch_size",
        "rollout.score_chunk_size",
        "rollout.vllm_max_gap",
        "rollout.vllm_memory_share",
        "reward.targets",
        "reward.model",
        "reward.models",
        "reward.lease_s",
        "reward.on_version_change",
        "reward.timeout_s",
        "reward.patience_s",
        "ppo.micro_batch_size",
        "train.num_steps",
        "train.checkpoint_every_steps",
        "train.keep_checkpoints",
        "train.samples_every_steps",
        "train.samples_per_step",
        "train.tracking",
        "train.wandb_project",
        *ADJUSTABLE,
        *(f"evaluation.{item.name}" for item in fields(EvaluationConfig)),
    }
)


def start_run(config: PPOConfig, rewards: RewardSource | None = None) -> Run:
    """A new run. Raises ConfigError where its output directory already holds one."""
    config = with_absolute_paths(config)
    output = Path(config.train.output)
    accelerator = make_accelerator(config.train.mixed_precision, config.reward.patience_s)
    has_begun = accelerator.is_main_process and not disk.clear_unless_begun(output)
    if is_true_anywhere(has_begun):
        raise ConfigError(
            f"{output} already holds a run: go on with `ppo-client resume {output}`, or choose another --output"
        )
    name = [config.train.run or f"ppo-{uuid.uuid4().hex[:12]}"]
    run_id: str = broadcast_object_list(name)[0]
    set_seed(config.train.seed, device_specific=True)
    state = RunState(run_id, 0, 0, config.kl.coefficient, ScoreNormalizer(), settings=adjustable_settings(config))
    run = assemble(config, accelerator, rewards, state)
    _write_config(run)
    return run


def resume_run(output: Path, rewards: RewardSource | None = None, overrides: Sequence[str] = ()) -> Run:
    """The run in `output`, as its latest checkpoint left it. `overrides` may change what CHANGEABLE_ON_RESUME names."""
    saved = output / "config.toml"
    if not saved.exists():
        raise CheckpointError(f"no run in {output}: config.toml is missing")
    before = load_config(PPOConfig, saved)
    config = load_config(PPOConfig, saved, overrides)
    if fixed := [key for key in changed_keys(before, config) if key not in CHANGEABLE_ON_RESUME]:
        raise ConfigError(
            f"{', '.join(fixed)} cannot change in a run under way. Start a new run, with policy.model set to "
            f"a checkpoint's policy directory; on resume these may change: {', '.join(sorted(CHANGEABLE_ON_RESUME))}"
        )
    if _weighed(config) != _weighed(before):
        raise ConfigError(
            "the number of reward.models, their order, weight and calibrated cannot change in a run under way; the "
            "selector of each may"
        )
    if config.train.num_steps != before.train.num_steps and config.ppo.schedule != "constant":
        raise ConfigError(
            f"train.num_steps cannot change from {before.train.num_steps} to {config.train.num_steps}: the "
            f"{config.ppo.schedule} schedule ends the learning rate at the last step, so other steps before it would "
            'have learnt at other rates. Runs with ppo.schedule = "constant" can be extended'
        )
    # A run that was moved is resumed where it is now.
    config = with_absolute_paths(replace(config, train=replace(config.train, output=str(output))))
    place = disk.latest_checkpoint(output)
    accelerator = make_accelerator(config.train.mixed_precision, config.reward.patience_s)
    try:
        state = RunState.from_json((place / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{place} cannot be read: {error}") from error
    state = replace(state, settings=state.settings or adjustable_settings(before))
    # By the checkpoint, not by config.toml: a resume that was told so may have ended before its first step.
    if any(change.setting == "kl.coefficient" for change in setting_changes(state.settings, config)):
        state = replace(state, kl_coefficient=coefficient_set(config.kl, state.step))
    run = assemble(config, accelerator, rewards, state, place / "policy")
    load_optimizer_state(run.updater.model, run.updater.optimizer, disk.load_tensors(place / "optimizer.pt"))
    marks = disk.load_tensors(place / "processes.pt")
    if accelerator.process_index < len(marks):
        disk.set_random_state(marks[accelerator.process_index]["random"])
    # There may be more processes now, or fewer.
    own = own_rows(config.ppo.batch_size, accelerator.process_index, accelerator.num_processes)
    run.restored = shared_out([chunk for mark in marks for chunk in mark["started"]], own)
    _write_config(run)  # so that the next resume knows what this one was told
    run.tracker.say(f"resuming {state.run} after step {state.step}, from {place}")
    return run


def _weighed(config: PPOConfig) -> list[tuple[float, bool]]:
    """What of `reward.models` decides what a score is, whichever versions give it."""
    return [(part.weight, part.calibrated) for part in config.reward.models]


def _write_config(run: Run) -> None:
    if run.accelerator.is_main_process:
        beside = run.output / ".config.toml"
        beside.write_text(to_toml(run.config), encoding="utf-8")
        beside.replace(run.output / "config.toml")
