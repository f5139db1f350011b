"""A run's parts, put together from its settings, or from a checkpoint's policy and its settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ppo_client.client.data_files import file_digest
from ppo_client.ppo.boards import make_boards
from ppo_client.ppo.checkpoint import RunState
from ppo_client.ppo.config import PPOConfig, RewardModelConfig
from ppo_client.ppo.errors import ConfigError
from ppo_client.ppo.evaluation import Evaluator
from ppo_client.ppo.inputs import check_unchanged
from ppo_client.ppo.models.build import check_fits, load_tokenizer, policy_class
from ppo_client.ppo.models.generation import make_generator
from ppo_client.ppo.models.run_models import Models, load_models, trained_share
from ppo_client.ppo.prompts import load_prompts
from ppo_client.ppo.rollout import RolloutWorker
from ppo_client.ppo.run import Run
from ppo_client.ppo.scores.connect import AWAY_ERRORS, connect
from ppo_client.ppo.scores.registration import Registration
from ppo_client.ppo.scores.reward_source import RewardDesk, RewardSource, parts_of
from ppo_client.ppo.scores.waiting import Patience
from ppo_client.ppo.sharding import make_learner, make_stepper
from ppo_client.ppo.tracking import Tracker
from ppo_client.ppo.update import Updater

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ppo_client.ppo.models.critic import ActorCritic


def assemble(
    config: PPOConfig,
    accelerator: Accelerator,
    rewards: RewardSource | None,
    state: RunState,
    saved: Path | None = None,
) -> Run:
    """`saved`: the `policy` directory of the checkpoint to go on from."""
    _check_shares(config, accelerator.num_processes)
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
    check_fits(actor_critic.policy, prompts, config.rollout.max_response_tokens, models.readers)
    learner = make_learner(accelerator, actor_critic, config)
    model, optimizer = accelerator.prepare(learner, _optimizer(learner, config))
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
    # An adapter's reference is the same model, so by the same forward pass the KL is 0 at first, to the last bit.
    trusts_sampling = config.is_in_fp32 and not config.lora.rank
    patience = Patience(
        limit_s=config.reward.patience_s,
        timeout_s=config.reward.timeout_s,
        away_errors=AWAY_ERRORS,
        report=tracker.say,
        on_trouble=lambda: run.save_as_marked(),  # noqa: PLW0108 - `run` is made below
    )
    parts = parts_of(config.reward)
    desk = RewardDesk(
        rewards,
        parts,
        patience,
        truncation=config.reward.truncation or None,
        drops_failed_items=config.reward.on_failed_item == "drop",
        empty_score=config.reward.empty_score,
    )
    rollout = config.rollout
    longest_prompt = max(len(prompt.token_ids) for prompt in prompts)
    worker = RolloutWorker(
        actor_critic=actor_critic,
        reference=models.reference,
        desk=desk,
        tokenizer=tokenizer,
        micro_batch_size=rollout.micro_batch_size,
        log_probs_from_sampling=rollout.log_probs == "sampling" or (rollout.log_probs == "auto" and trusts_sampling),
        device=accelerator.device,
        score_chunk_size=rollout.score_chunk_size,
        generator=make_generator(config, actor_critic.policy, longest_prompt, accelerator.num_processes),
    )
    registration = None
    if client is not None and is_main:
        selectors = [*(part.model for part in parts), *filter(None, [config.evaluation.model])]
        names = dict.fromkeys(selector for selector in selectors if "@" not in selector)
        registration = Registration(client, list(names), config.reward.lease_s, patience, tracker.say)
    run = Run(
        config=config,
        accelerator=accelerator,
        actor_critic=actor_critic,
        tokenizer=tokenizer,
        prompts=prompts,
        worker=worker,
        updater=Updater(model, optimizer, make_stepper(accelerator, model, optimizer, config), accelerator, config),
        tracker=tracker,
        client=client,
        state=state,
        evaluator=_evaluator(config, worker, models, log_probs_from_sampling=trusts_sampling, keeps_eos=keeps_eos),
        registration=registration,
    )
    return run


def _check_shares(config: PPOConfig, num_processes: int) -> None:
    ppo = config.ppo
    if ppo.batch_size % (ppo.num_minibatches * num_processes):
        raise ConfigError(
            f"ppo.batch_size ({ppo.batch_size}) is not a multiple of ppo.num_minibatches ({ppo.num_minibatches}) "
            f"times the number of processes ({num_processes})"
        )
    if config.reward.normalize_samples % num_processes:
        raise ConfigError(
            f"reward.normalize_samples ({config.reward.normalize_samples}) is not a multiple of the number of "
            f"processes ({num_processes})"
        )


def _optimizer(learner: ActorCritic, config: PPOConfig) -> torch.optim.AdamW:
    """One group of parameters; a second one for a critic that learns at its own rate."""
    groups = learner.parts()
    if not config.critic.learning_rate:
        groups = [[parameter for group in groups for parameter in group]]
    ppo = config.ppo
    return torch.optim.AdamW(
        [{"params": group} for group in groups],
        lr=ppo.learning_rate,
        betas=(ppo.adam_beta1, ppo.adam_beta2),
        eps=ppo.adam_epsilon,
        weight_decay=ppo.weight_decay,
        fused=True,
    )


def _evaluator(
    config: PPOConfig, worker: RolloutWorker, models: Models, *, log_probs_from_sampling: bool, keeps_eos: bool
) -> Evaluator | None:
    evaluation = config.evaluation
    if not evaluation.prompts:
        return None
    data = replace(config.data, prompts=evaluation.prompts, where=evaluation.where)
    prompts = load_prompts(data, config.reward, worker.tokenizer, keeps_eos=keeps_eos)[: evaluation.count]
    readers = {name: model for name, model in models.readers.items() if name == "policy.reference"}  # no critic
    check_fits(worker.actor_critic.policy, prompts, config.rollout.max_response_tokens, readers)
    judge = None
    if evaluation.model:
        judge = replace(worker.desk, parts=(RewardModelConfig(evaluation.model),))
    return Evaluator(
        policy=worker.actor_critic.policy,
        reference=models.reference,
        prompts=prompts,
        desk=worker.desk,
        judge=judge,
        tokenizer=worker.tokenizer,
        batch_size=evaluation.batch_size,
        max_response_tokens=config.rollout.max_response_tokens,
        seed=config.train.seed,
        device=worker.device,
        log_probs_from_sampling=log_probs_from_sampling,
    )
