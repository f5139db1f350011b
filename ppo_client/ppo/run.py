"""A run's parts, put together from its settings, or from a checkpoint and its settings; and saved again."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, set_seed

from ppo_client.ppo import checkpoint as disk
from ppo_client.ppo.build import check_fits, load_language_model, load_tokenizer, policy_class
from ppo_client.ppo.checkpoint import RunState
from ppo_client.ppo.config import PPOConfig
from ppo_client.ppo.config_file import changed_keys, load_config, to_toml
from ppo_client.ppo.connect import AWAY_ERRORS, connect
from ppo_client.ppo.critic import ActorCritic
from ppo_client.ppo.distributed import is_true_anywhere
from ppo_client.ppo.errors import CheckpointError, ConfigError
from ppo_client.ppo.inputs import check_unchanged, file_digest, with_absolute_paths
from ppo_client.ppo.models import load_models, save_policy, trained_share
from ppo_client.ppo.normalize import ScoreNormalizer
from ppo_client.ppo.prompts import Prompt, load_prompts
from ppo_client.ppo.reward_source import RewardDesk, RewardSource
from ppo_client.ppo.rollout import RolloutWorker
from ppo_client.ppo.tracking import Tracker
from ppo_client.ppo.update import Updater

if TYPE_CHECKING:
    from ppo_client import RewardClient

# The others decide what is learnt: with them changed it would be another run.
CHANGEABLE_ON_RESUME = frozenset(
    {
        "policy.gradient_checkpointing",
        "lora.merge",
        "rollout.micro_batch_size",
        "reward.targets",
        "reward.model",
        "reward.empty_score",
        "reward.on_version_change",
        "reward.timeout_s",
        "reward.patience_s",
        "ppo.micro_batch_size",
        "train.num_steps",
        "train.output",
        "train.checkpoint_every_steps",
        "train.keep_checkpoints",
        "train.samples_every_steps",
        "train.samples_per_step",
        "train.tensorboard",
    }
)


@dataclass(slots=True)
class Run:
    """Everything one process holds during a run."""

    config: PPOConfig
    accelerator: Accelerator
    actor_critic: ActorCritic
    tokenizer: Any | None
    prompts: list[Prompt]
    worker: RolloutWorker
    updater: Updater
    tracker: Tracker
    client: RewardClient | None
    """Made by the run, which closes it"""
    state: RunState

    @property
    def output(self) -> Path:
        return Path(self.config.train.output)

    @property
    def is_saved(self) -> bool:
        return disk.checkpoint_path(self.output, self.state.step).exists()

    def save(self) -> None:
        """Writes a checkpoint of the present state, instead of the one of this step that may be there."""
        random_states = gather_object([disk.random_state()])
        if self.accelerator.is_main_process:
            keep = self.config.train.keep_checkpoints
            disk.save_checkpoint(self.output, self.state.step, partial(self._write, random_states), keep)
        self.accelerator.wait_for_everyone()

    def export_policy(self) -> None:
        """Puts the policy of the last checkpoint where people look for it."""
        if self.accelerator.is_main_process:
            saved = disk.checkpoint_path(self.output, self.state.step) / "policy"
            disk.write_directory(self.output / "policy", partial(_copy_directory, saved))
            if self.config.lora.merge:
                disk.write_directory(self.output / "policy-merged", self._write_merged)
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Closes the logs, and the client where the run made one."""
        self.tracker.close()
        if self.client is not None:
            self.client.close()

    def _write_merged(self, place: Path) -> None:
        load_language_model(str(self.output / "policy"), self.config.policy.dtype).save_pretrained(place)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(place)

    def _write(self, random_states: list[dict[str, Any]], place: Path) -> None:
        policy = place / "policy"
        save_policy(self.actor_critic, policy)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(policy)
        torch.save(self.updater.optimizer.state_dict(), place / "optimizer.pt")
        torch.save(random_states, place / "rng.pt")
        (place / "state.json").write_text(self.state.to_json(), encoding="utf-8")


def start_run(config: PPOConfig, rewards: RewardSource | None = None) -> Run:
    """A new run. Raises ConfigError where its output directory already holds one."""
    config = with_absolute_paths(config)
    output = Path(config.train.output)
    accelerator = Accelerator(mixed_precision=config.train.mixed_precision)
    has_begun = accelerator.is_main_process and not disk.clear_unless_begun(output)
    if is_true_anywhere(has_begun):
        raise ConfigError(
            f"{output} already holds a run: go on with `ppo-client resume {output}`, or choose another --output"
        )
    name = [config.train.run or f"ppo-{uuid.uuid4().hex[:12]}"]
    run_id: str = broadcast_object_list(name)[0]
    set_seed(config.train.seed, device_specific=True)
    state = RunState(run_id, 0, 0, config.kl.coefficient, ScoreNormalizer(), None)
    run = _assemble(config, accelerator, rewards, state)
    _write_config(run)
    return run


def resume_run(output: Path, rewards: RewardSource | None = None, overrides: Sequence[str] = ()) -> Run:
    """The run in `output`, as its latest checkpoint left it. `overrides` may change what does not alter learning."""
    saved = output / "config.toml"
    if not saved.exists():
        raise CheckpointError(f"no run in {output}: config.toml is missing")
    before = load_config(PPOConfig, saved)
    # A run that was moved is resumed where it is now.
    config = load_config(PPOConfig, saved, [*overrides, f"train.output={str(output)!r}"])
    if fixed := [key for key in changed_keys(before, config) if key not in CHANGEABLE_ON_RESUME]:
        raise ConfigError(
            f"{', '.join(fixed)} cannot change in a run under way. Start a new run, with policy.model set to "
            f"a checkpoint's policy directory; on resume these may change: {', '.join(sorted(CHANGEABLE_ON_RESUME))}"
        )
    if config.train.num_steps != before.train.num_steps and config.ppo.schedule != "constant":
        raise ConfigError(
            f"train.num_steps cannot change from {before.train.num_steps} to {config.train.num_steps}: the "
            f"{config.ppo.schedule} schedule ends the learning rate at the last step, so other steps before it would "
            'have learnt at other rates. Runs with ppo.schedule = "constant" can be extended'
        )
    config = with_absolute_paths(config)
    place = disk.latest_checkpoint(output)
    accelerator = Accelerator(mixed_precision=config.train.mixed_precision)
    try:
        state = RunState.from_json((place / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{place} cannot be read: {error}") from error
    run = _assemble(config, accelerator, rewards, state, place / "policy")
    run.updater.optimizer.load_state_dict(disk.load_tensors(place / "optimizer.pt"))
    random_states = disk.load_tensors(place / "rng.pt")
    if accelerator.process_index < len(random_states):
        disk.set_random_state(random_states[accelerator.process_index])
    _write_config(run)  # so that the next resume knows what this one was told
    run.tracker.say(f"resuming {state.run} after step {state.step}, from {place}")
    return run


def _assemble(
    config: PPOConfig,
    accelerator: Accelerator,
    rewards: RewardSource | None,
    state: RunState,
    saved: Path | None = None,
) -> Run:
    """`saved`: the `policy` directory of the checkpoint to go on from."""
    ppo, num_processes = config.ppo, accelerator.num_processes
    if ppo.batch_size % (ppo.num_minibatches * num_processes):
        raise ConfigError(
            f"ppo.batch_size ({ppo.batch_size}) is not a multiple of ppo.num_minibatches ({ppo.num_minibatches}) "
            f"times the number of processes ({num_processes})"
        )
    client = None
    if rewards is None:
        rewards = client = connect(config.reward, state.run)
    tokenizer = load_tokenizer(config.policy.tokenizer or config.policy.model)
    if tokenizer is None and config.policy.tokenizer:
        raise ConfigError(f"policy.tokenizer: there is none in {config.policy.tokenizer}")
    keeps_eos = not policy_class(config.policy.model).continues_prompt
    prompts = load_prompts(config.data, config.reward, tokenizer, keeps_eos=keeps_eos)
    models = load_models(config, tokenizer, accelerator.device, saved)
    actor_critic = models.actor_critic
    inputs = {"data.prompts": file_digest(Path(config.data.prompts)), **models.digests}
    check_unchanged(state.inputs, inputs)
    state = replace(state, inputs=inputs)
    check_fits(actor_critic.policy, prompts, config.rollout.max_response_tokens)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in actor_critic.parameters() if parameter.requires_grad],
        lr=ppo.learning_rate,
        betas=(ppo.adam_beta1, ppo.adam_beta2),
        eps=ppo.adam_epsilon,
        weight_decay=ppo.weight_decay,
        fused=True,
    )
    model, optimizer = accelerator.prepare(actor_critic, optimizer)
    tracker = Tracker(
        Path(config.train.output),
        last_step=state.step,
        num_steps=config.train.num_steps,
        tensorboard=config.train.tensorboard,
        enabled=accelerator.is_main_process,
    )
    if config.lora.rank:
        num_trained, num_all = trained_share(actor_critic)
        tracker.say(f"{num_trained} of {num_all} parameters have gradients ({num_trained / num_all:.2%})")
    in_fp32 = config.policy.dtype == "float32" and config.train.mixed_precision == "no"
    # An adapter's reference is the same model, so by the same forward pass the KL is 0 at first, to the last bit.
    trusts_sampling = in_fp32 and not config.lora.rank
    wanted = config.rollout.log_probs
    desk = RewardDesk(
        source=rewards,
        model=config.reward.model,
        patience_s=config.reward.patience_s,
        calibrated=config.reward.calibrated,
        away_errors=AWAY_ERRORS,
        report=tracker.say,
    )
    worker = RolloutWorker(
        actor_critic=actor_critic,
        reference=models.reference,
        desk=desk,
        tokenizer=tokenizer,
        micro_batch_size=config.rollout.micro_batch_size,
        log_probs_from_sampling=wanted == "sampling" or (wanted == "auto" and trusts_sampling),
        device=accelerator.device,
        empty_score=config.reward.empty_score,
    )
    updater = Updater(model, optimizer, accelerator, config)
    return Run(config, accelerator, actor_critic, tokenizer, prompts, worker, updater, tracker, client, state)


def _write_config(run: Run) -> None:
    if run.accelerator.is_main_process:
        beside = run.output / ".config.toml"
        beside.write_text(to_toml(run.config), encoding="utf-8")
        beside.replace(run.output / "config.toml")


def _copy_directory(source: Path, place: Path) -> None:
    shutil.copytree(source, place, dirs_exist_ok=True)
