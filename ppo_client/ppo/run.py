"""A run's parts, put together from its settings, or from a checkpoint and its settings; and saved again."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list, gather_object, set_seed

from ppo_client.ppo import checkpoint as disk
from ppo_client.ppo.boards import make_boards
from ppo_client.ppo.build import check_fits, load_language_model, load_tokenizer, policy_class
from ppo_client.ppo.checkpoint import RunState
from ppo_client.ppo.config import EvaluationConfig, PPOConfig, RewardModelConfig
from ppo_client.ppo.config_file import changed_keys, load_config, to_toml
from ppo_client.ppo.connect import AWAY_ERRORS, connect
from ppo_client.ppo.critic import ActorCritic
from ppo_client.ppo.distributed import is_true_anywhere
from ppo_client.ppo.errors import CheckpointError, ConfigError
from ppo_client.ppo.evaluation import Evaluator, Reference
from ppo_client.ppo.generation import make_generator
from ppo_client.ppo.inputs import check_unchanged, file_digest, with_absolute_paths
from ppo_client.ppo.models import load_models, save_policy, trained_share
from ppo_client.ppo.normalize import ScoreNormalizer
from ppo_client.ppo.prompts import Prompt, load_prompts
from ppo_client.ppo.registration import Registration
from ppo_client.ppo.reward_source import RewardDesk, RewardSource, parts_of
from ppo_client.ppo.rollout import RolloutWorker, Started
from ppo_client.ppo.sharding import (
    is_sharded,
    load_optimizer_state,
    make_accelerator,
    make_learner,
    optimizer_state,
)
from ppo_client.ppo.staleness import to_tensors
from ppo_client.ppo.tracking import Tracker
from ppo_client.ppo.update import Updater
from ppo_client.ppo.waiting import Patience

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ppo_client import RewardClient

# The others decide what is learnt: with them changed it would be another run.
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
        "reward.empty_score",
        "reward.lease_s",
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
        "train.tracking",
        "train.wandb_project",
        *(f"evaluation.{item.name}" for item in fields(EvaluationConfig)),
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
    evaluator: Evaluator | None
    registration: Registration | None
    """None: scores come from a source that the caller brought"""
    started: Started | None = None
    """With `rollout.max_staleness`: the next step's responses"""
    restored: list[dict[str, Any]] = field(default_factory=list)
    """Or, after a resume, what was written of them before"""
    has_reported_gap: bool = False
    """How far the engine that writes is from the policy"""
    marks: list[dict[str, Any]] = field(default_factory=list)
    """What each process has to save, as of the last `mark`"""

    @property
    def output(self) -> Path:
        return Path(self.config.train.output)

    @property
    def is_saved(self) -> bool:
        return disk.checkpoint_path(self.output, self.state.step).exists()

    def mark(self) -> None:
        """Collects from all processes what a checkpoint of this moment holds of them."""
        chunks = to_tensors([samples for samples, _ in self.started.chunks]) if self.started else self.restored
        self.marks = gather_object([{"random": disk.random_state(), "started": chunks}])

    def save(self) -> None:
        """Writes a checkpoint of the present state, instead of the one of this step that may be there."""
        self.mark()
        optimizer = optimizer_state(self.updater.model, self.updater.optimizer)
        if self.accelerator.is_main_process:
            self._save(optimizer)
        self.accelerator.wait_for_everyone()

    def save_as_marked(self) -> None:
        """As `save`, while the other processes do something else. Nothing may have been learnt since `mark`.

        With FSDP it does nothing: the others' shares of the optimizer's state are out of reach until they join in.
        """
        model, optimizer = self.updater.model, self.updater.optimizer
        if self.accelerator.is_main_process and not self.is_saved and not is_sharded(model):
            self._save(optimizer_state(model, optimizer))

    def save_best(self) -> None:
        """Keeps the present state as OUTPUT/best."""
        self.mark()
        optimizer = optimizer_state(self.updater.model, self.updater.optimizer)
        if self.accelerator.is_main_process:
            disk.write_directory(self.output / "best", partial(self._write, optimizer))
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
        if self.started is not None:
            self.started.cancel()
        if self.registration is not None:
            self.registration.close()
        self.tracker.close()
        if self.client is not None:
            self.client.close()

    def _write_merged(self, place: Path) -> None:
        load_language_model(str(self.output / "policy"), self.config.policy.dtype).save_pretrained(place)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(place)

    def _save(self, optimizer: dict[str, Any]) -> None:
        write = partial(self._write, optimizer)
        disk.save_checkpoint(self.output, self.state.step, write, self.config.train.keep_checkpoints)

    def _write(self, optimizer: dict[str, Any], place: Path) -> None:
        policy = place / "policy"
        save_policy(self.actor_critic, policy)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(policy)
        torch.save(optimizer, place / "optimizer.pt")
        torch.save(self.marks, place / "processes.pt")
        (place / "state.json").write_text(self.state.to_json(), encoding="utf-8")


def start_run(config: PPOConfig, rewards: RewardSource | None = None) -> Run:
    """A new run. Raises ConfigError where its output directory already holds one."""
    config = with_absolute_paths(config)
    output = Path(config.train.output)
    accelerator = make_accelerator(config.train.mixed_precision)
    has_begun = accelerator.is_main_process and not disk.clear_unless_begun(output)
    if is_true_anywhere(has_begun):
        raise ConfigError(
            f"{output} already holds a run: go on with `ppo-client resume {output}`, or choose another --output"
        )
    name = [config.train.run or f"ppo-{uuid.uuid4().hex[:12]}"]
    run_id: str = broadcast_object_list(name)[0]
    set_seed(config.train.seed, device_specific=True)
    state = RunState(run_id, 0, 0, config.kl.coefficient, ScoreNormalizer())
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
    accelerator = make_accelerator(config.train.mixed_precision)
    try:
        state = RunState.from_json((place / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{place} cannot be read: {error}") from error
    run = _assemble(config, accelerator, rewards, state, place / "policy")
    load_optimizer_state(run.updater.model, run.updater.optimizer, disk.load_tensors(place / "optimizer.pt"))
    marks = disk.load_tensors(place / "processes.pt")
    if accelerator.process_index < len(marks):
        disk.set_random_state(marks[accelerator.process_index]["random"])
    if len(marks) == accelerator.num_processes:  # else the responses are shared out in another way: written anew
        run.restored = marks[accelerator.process_index]["started"]
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
    learner = make_learner(accelerator, actor_critic, config)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in learner.parameters() if parameter.requires_grad],
        lr=ppo.learning_rate,
        betas=(ppo.adam_beta1, ppo.adam_beta2),
        eps=ppo.adam_epsilon,
        weight_decay=ppo.weight_decay,
        fused=True,
    )
    model, optimizer = accelerator.prepare(learner, optimizer)
    is_main = accelerator.is_main_process
    tracker = Tracker(
        Path(config.train.output),
        last_step=state.step,
        last_evaluation=state.progress.step,
        num_steps=config.train.num_steps,
        boards=make_boards(config, state.run, state.step) if is_main else (),
        enabled=is_main,
    )
    if config.lora.rank:
        num_trained, num_all = trained_share(actor_critic)
        tracker.say(f"{num_trained} of {num_all} parameters have gradients ({num_trained / num_all:.2%})")
    in_fp32 = config.policy.dtype == "float32" and config.train.mixed_precision == "no"
    # An adapter's reference is the same model, so by the same forward pass the KL is 0 at first, to the last bit.
    trusts_sampling = in_fp32 and not config.lora.rank
    wanted = config.rollout.log_probs
    patience = Patience(
        limit_s=config.reward.patience_s,
        timeout_s=config.reward.timeout_s,
        away_errors=AWAY_ERRORS,
        report=tracker.say,
        on_trouble=lambda: run.save_as_marked(),  # noqa: PLW0108 - `run` is made below
    )
    parts = parts_of(config.reward)
    desk = RewardDesk(rewards, parts, patience)
    worker = RolloutWorker(
        actor_critic=actor_critic,
        reference=models.reference,
        desk=desk,
        tokenizer=tokenizer,
        micro_batch_size=config.rollout.micro_batch_size,
        log_probs_from_sampling=wanted == "sampling" or (wanted == "auto" and trusts_sampling),
        device=accelerator.device,
        empty_score=config.reward.empty_score,
        score_chunk_size=config.rollout.score_chunk_size,
        generator=make_generator(
            config, actor_critic.policy, max(len(prompt.token_ids) for prompt in prompts), num_processes
        ),
    )
    registration = None
    if client is not None and is_main:
        names = [part.model for part in parts if "@" not in part.model]
        registration = Registration(client, names, config.reward.lease_s, patience, tracker.say)
    run = Run(
        config=config,
        accelerator=accelerator,
        actor_critic=actor_critic,
        tokenizer=tokenizer,
        prompts=prompts,
        worker=worker,
        updater=Updater(model, optimizer, accelerator, config),
        tracker=tracker,
        client=client,
        state=state,
        evaluator=_evaluator(config, worker, models.reference, keeps_eos=keeps_eos),
        registration=registration,
    )
    return run


def _evaluator(config: PPOConfig, worker: RolloutWorker, reference: Reference, *, keeps_eos: bool) -> Evaluator | None:
    evaluation = config.evaluation
    if not evaluation.prompts:
        return None
    data = replace(config.data, prompts=evaluation.prompts, where=evaluation.where)
    prompts = load_prompts(data, config.reward, worker.tokenizer, keeps_eos=keeps_eos)[: evaluation.count]
    check_fits(worker.actor_critic.policy, prompts, config.rollout.max_response_tokens)
    judge = None
    if evaluation.model:
        judge = replace(worker.desk, parts=(RewardModelConfig(evaluation.model),))
    return Evaluator(
        policy=worker.actor_critic.policy,
        reference=reference,
        prompts=prompts,
        desk=worker.desk,
        judge=judge,
        tokenizer=worker.tokenizer,
        batch_size=evaluation.batch_size,
        max_response_tokens=config.rollout.max_response_tokens,
        seed=config.train.seed,
        device=worker.device,
        empty_score=config.reward.empty_score,
    )


def _write_config(run: Run) -> None:
    if run.accelerator.is_main_process:
        beside = run.output / ".config.toml"
        beside.write_text(to_toml(run.config), encoding="utf-8")
        beside.replace(run.output / "config.toml")


def _copy_directory(source: Path, place: Path) -> None:
    shutil.copytree(source, place, dirs_exist_ok=True)
