"""PPO in the order of the algorithm: roll out, ask for scores, advantages, update, adjust KL, log, evaluate, save."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from accelerate.utils import gather_object
from torch import Tensor

from ppo_client.ppo import checkpoint as disk
from ppo_client.ppo.advantages import gae, whiten
from ppo_client.ppo.checkpoint import RunState
from ppo_client.ppo.config import PPOConfig
from ppo_client.ppo.distributed import gather_rollout, is_true_anywhere, own_rows, raise_together
from ppo_client.ppo.errors import EmptyResponse, FailedItems, NonFiniteUpdate, RunStopped
from ppo_client.ppo.evaluation_facts import evaluation_facts, measure_of, text_rows
from ppo_client.ppo.kl import check_finite, kl_per_token, next_coefficient
from ppo_client.ppo.metrics import Event, metrics_row, sample_rows
from ppo_client.ppo.models.generation import log_prob_gap
from ppo_client.ppo.progress import is_due
from ppo_client.ppo.prompts import Prompt
from ppo_client.ppo.rewards import reward_facts, shaped_scores, token_rewards
from ppo_client.ppo.rollout import Rollout, Started
from ppo_client.ppo.scores.dropped import without_dropped
from ppo_client.ppo.scores.normalize import NormalizerFitted
from ppo_client.ppo.scores.reward_source import RewardSource
from ppo_client.ppo.scores.scale import first_normalizer, on_one_scale
from ppo_client.ppo.scores.versions import RewardVersion, VersionChange, changes_of_all, follows
from ppo_client.ppo.seeds import Purpose, prompt_rows, uniforms
from ppo_client.ppo.setting_changes import adjustable_settings, setting_changes
from ppo_client.ppo.sharding import autocast, copy_weights
from ppo_client.ppo.staleness import from_tensors, importance_weights
from ppo_client.ppo.start import resume_run, start_run
from ppo_client.ppo.update import Batch


class PPOTrainer:
    """Trains a language model against a reward service.

        PPOTrainer(PPOConfig(...)).train()
        PPOTrainer.resume("runs/exp-17").train()

    `rewards` stands in for the service that the settings name: anything with RewardClient's `submit`.
    """

    def __init__(self, config: PPOConfig, rewards: RewardSource | None = None) -> None:
        self.run = start_run(config, rewards)

    @classmethod
    def resume(
        cls, output: str | Path, rewards: RewardSource | None = None, overrides: Sequence[str] = ()
    ) -> PPOTrainer:
        """Goes on after the latest checkpoint in `output`; `overrides` are like "train.num_steps=200"."""
        trainer = cls.__new__(cls)
        trainer.run = resume_run(Path(output), rewards, overrides)
        return trainer

    @property
    def state(self) -> RunState:
        return self.run.state

    def stop_after_step(self) -> None:
        """Lets `train` return after the step under way, with a checkpoint. Safe in a signal handler.

        Where the step waits for scores, it is given up: nothing has been learnt from it, and `resume` makes it again.
        """
        self.run.worker.desk.patience.stop.is_wanted = True

    def train(self) -> RunState:
        """Runs until `train.num_steps` or an early end; a checkpoint is there when it returns, or scores fail."""
        run, train = self.run, self.run.config.train
        try:
            self._register()
            if run.state.step == 0 and run.config.reward.normalize_samples and not run.state.versions:
                self._fit_normalizer()
            self._evaluate()  # what an interruption left out
            while run.state.step < train.num_steps and not run.state.progress.reason_to_end(run.config.evaluation):
                self.train_step()
                run.is_stopped = is_true_anywhere(run.worker.desk.patience.stop.is_wanted)

                # 7. Evaluate.
                if not run.is_stopped:
                    self._evaluate()

                # 8. Save.
                every, step = train.checkpoint_every_steps, run.state.step
                if (every and step % every == 0) or run.is_stopped or step == train.num_steps:
                    run.save()
                if run.is_stopped:
                    return run.state
            self._end()
            return run.state
        except RunStopped as stopped:
            run.is_stopped = True
            run.tracker.say(str(stopped))
            return run.state
        finally:
            run.close()

    def train_step(self) -> None:
        """One batch of episodes, and what is learnt from it."""
        run, config, before = self.run, self.run.config, self.run.state
        step, started_at, kl_coefficient = run.state.step + 1, time.perf_counter(), run.state.kl_coefficient

        # 1. Roll out; scores are asked for meanwhile.
        rollout, found, ahead = self._roll_out(Purpose.SAMPLING, step, config.ppo.batch_size)
        events = [*setting_changes(before.settings, config), *found]
        mask = rollout.sequences.response_mask

        # 2. Rewards: minus the KL penalty at each token, plus the score at the last.
        kl = kl_per_token(rollout.log_probs, rollout.reference_log_probs, config.kl.estimator)
        normalized, normalizer = on_one_scale(
            rollout, before, run.state.versions, found, config.reward.normalize_samples
        )
        if normalizer != before.normalizer:
            run.state = replace(run.state, normalizer=normalizer)
            events.append(NormalizerFitted(normalizer))
        scores = shaped_scores(normalized, rollout.has_eos, config.reward)
        rewards = token_rewards(scores, kl, mask, kl_coefficient)
        kept = rollout.kept
        rewarded = reward_facts(normalized[kept], scores[kept], rewards[kept], config.reward.clip)
        if config.ppo.whiten_rewards:
            rewards = whiten(rewards, mask, keep_mean=True)

        # 3. Advantages.
        advantages, returns = gae(
            rewards, rollout.values, mask, gamma=config.ppo.gamma, gae_lambda=config.ppo.gae_lambda
        )
        if config.ppo.whiten_advantages:
            advantages = whiten(advantages, mask, keep_mean=False)

        # 4. Update.
        update_started = time.perf_counter()
        run.updater.model.train()
        weights = None
        if rollout.sampled_log_probs is not None:
            limit = config.rollout.max_importance_weight
            weights = importance_weights(rollout.log_probs, rollout.sampled_log_probs, mask, limit)
        batch = Batch(rollout.sequences, rollout.log_probs, rollout.values, advantages, returns, weights)
        try:
            update = run.updater.update(batch, step)
        except NonFiniteUpdate as error:
            if ahead is not None:
                ahead.cancel()
            run.state = before
            raise self._told(error) from error
        copy_weights(run.updater.model, run.actor_critic)
        update_s = time.perf_counter() - update_started

        # 5. Adjust the KL coefficient.
        episode_kl = float((rollout.log_probs - rollout.reference_log_probs).sum(1)[kept].mean())
        num_episodes = int(kept.sum())
        run.state = replace(
            run.state,
            step=step,
            episodes=run.state.episodes + config.ppo.batch_size,
            kl_coefficient=next_coefficient(
                config.kl, kl_coefficient, episode_kl, step=step, num_episodes=num_episodes
            ),
            settings=adjustable_settings(config),
        )
        run.started = ahead

        # 6. Log.
        if events:
            run.tracker.say(f"step {step}: " + "; ".join(map(str, events)))
        row = metrics_row(
            run.state,
            rollout,
            update,
            returns,
            kl=episode_kl,
            kl_coefficient=kl_coefficient,
            events=events,
            max_importance_weight=config.rollout.max_importance_weight,
        )
        run.tracker.step(row | rewarded | {"update_s": update_s, "step_s": time.perf_counter() - started_at})
        every = config.train.samples_every_steps
        if every and (step % every == 0 or step == 1):
            run.tracker.samples(sample_rows(step, rollout, run.worker.desk.parts, config.train.samples_per_step))

    def _told(self, error: NonFiniteUpdate) -> NonFiniteUpdate:
        """The same, with what to do about it. A state that is as before the step is saved, beside all others."""
        run, step = self.run, self.run.state.step
        if error.num_optimizer_steps == 0 and not run.is_saved:
            run.save(num_older=run.config.train.keep_checkpoints)
        return NonFiniteUpdate(f"step {step + 1}: {error}. {_way_on(run.output, step, error.num_optimizer_steps)}")

    def _roll_out(self, purpose: Purpose, step: int, num_episodes: int) -> tuple[Rollout, list[Event], Started | None]:
        """`num_episodes` over all processes, what is to be told of their rewards, and the next step's beginning.

        Nothing has been learnt from them yet: where they cannot be had, the run is saved as it is, and can go on.
        """
        run, config = self.run, self.run.config
        looks_ahead = config.rollout.max_staleness > 0 and purpose is Purpose.SAMPLING
        error: Exception | None = None
        ahead: Started | None = None
        run.mark()
        try:
            run.actor_critic.eval()
            with autocast(run.accelerator, config.train.mixed_precision):
                if not looks_ahead:
                    local = run.worker.collect(*self._own(purpose, step, num_episodes))
                else:
                    present, is_stale = self._present(step, num_episodes)
                    if step < config.train.num_steps:
                        ahead = run.worker.begin(*self._own(purpose, step + 1, num_episodes))
                    local = run.worker.finish(present, is_stale=is_stale)
        except Exception as caught:
            error = caught
            if ahead is not None:
                ahead.cancel()
        with self._saved_if_it_fails():
            raise_together(run.accelerator, error)
            rollout = gather_rollout(run.accelerator, local, run.actor_critic.policy.pad_id)
            self._check_generation(rollout)
            rollout, dropped = without_dropped(rollout)
            if dropped is not None and dropped.num_dropped == num_episodes:
                raise FailedItems(f"{dropped}; there is nothing to learn from")
            check_finite(rollout.log_probs, rollout.reference_log_probs, rollout.sequences.response_ids)
            versions, changes = self._versions_after(
                [record.given.versions for record in rollout.records if record.given.versions]
            )
            if not versions:
                raise EmptyResponse(f"all {num_episodes} responses are empty, so there is no score to learn from")
        run.state = replace(run.state, versions=versions)
        return rollout, [*changes, *([dropped] if dropped else [])], ahead

    def _versions_after(
        self, seen: Sequence[Sequence[RewardVersion]]
    ) -> tuple[tuple[RewardVersion, ...], list[VersionChange]]:
        """What the run learns from once these have scored, and the changes. Raises VersionChanged."""
        reward = self.run.config.reward
        return changes_of_all(
            self.run.state.versions,
            seen,
            selectors=[part.model for part in self.run.worker.desk.parts],
            setting="reward.models" if reward.models else "reward.model",
            on_version_change=reward.on_version_change,
        )

    def _check_generation(self, rollout: Rollout) -> None:
        """Where another engine wrote: that it has the policy's weights, each time; how near it comes, once."""
        sampled, run = rollout.sampled_log_probs, self.run
        if sampled is None or rollout.is_stale:
            return
        gap = log_prob_gap(rollout.log_probs, sampled, rollout.sequences.response_mask, run.config.rollout.vllm_max_gap)
        if not run.has_reported_gap:
            run.tracker.say(f"vLLM's log-probabilities differ from the policy's by {gap:.2g} nats per token, mean |Δ|")
            run.has_reported_gap = True

    def _own(self, purpose: Purpose, step: int, num_episodes: int) -> tuple[list[Prompt], Tensor]:
        """This process's prompts in a step, and the numbers to sample by."""
        run, config = self.run, self.run.config
        own = own_rows(num_episodes, run.accelerator.process_index, run.accelerator.num_processes)
        rows = prompt_rows(config.train.seed, max(step, 1), num_episodes, len(run.prompts))
        numbers = uniforms(config.train.seed, purpose, step, own, config.rollout.max_response_tokens)
        return [run.prompts[rows[row]] for row in own], numbers

    def _present(self, step: int, num_episodes: int) -> tuple[Started, bool]:
        """This step's responses: of a step ago, or of before an interruption, or else new; and whether they are old."""
        run = self.run
        if run.started is not None:
            return run.started, True
        prompts, numbers = self._own(Purpose.SAMPLING, step, num_episodes)
        if run.restored:
            run.started = run.worker.begin_again(prompts, from_tensors(run.restored, run.worker.device))
            run.restored = []
            return run.started, True
        return run.worker.begin(prompts, numbers), False

    def _evaluate(self) -> None:
        """If it is time. Draws nothing that training draws, and leaves the parameters alone."""
        run, config = self.run, self.run.config
        progress = run.state.progress
        if not is_due(config.evaluation, run.state.step, config.train.num_steps, progress.step):
            return
        assert run.evaluator is not None
        error: Exception | None = None
        run.mark()
        try:
            run.actor_critic.eval()
            with autocast(run.accelerator, config.train.mixed_precision):
                rank, world = run.accelerator.process_index, run.accelerator.num_processes
                local = run.evaluator.pairs(range(rank, len(run.evaluator.prompts), world))
        except Exception as caught:
            error = caught
        with self._saved_if_it_fails():
            raise_together(run.accelerator, error)
            pairs = sorted(gather_object(local), key=lambda pair: pair.row)
            if not pairs:
                raise FailedItems("each of the evaluation's prompts has a response without a score")
            # What the next step would be refused by is not to say either which policy is the best.
            self._versions_after([versions for pair in pairs for versions in pair.versions])
        facts, conditions = evaluation_facts(pairs), run.evaluator.conditions()
        value, measure = getattr(facts, config.evaluation.best_by), measure_of(facts, conditions, config.evaluation)
        run.state = replace(run.state, progress=progress.after(run.state.step, facts.kl, value, measure))
        texts = text_rows(pairs, config.train.samples_per_step)
        row = {"step": run.state.step, **facts.to_dict(), "conditions": conditions.to_dict(), "texts": texts}
        run.tracker.evaluation(row)
        if progress.measure not in ("", run.state.progress.measure):
            run.tracker.say(f"the best is sought anew, by {run.state.progress.measure}; before by {progress.measure}")
        if run.state.progress.best_step == run.state.step:
            run.save_best()

    def _register(self) -> None:
        """Holds the versions of bare names for the run; on resume those that it has learnt from."""
        run, error = self.run, None
        run.mark()
        if run.registration is not None:
            known = dict(zip((part.model for part in run.worker.desk.parts), run.state.versions, strict=False))
            setting = run.config.reward.on_version_change
            expected = [
                known[model].digest if model in known and not follows(model, setting) else None
                for model in run.registration.models
            ]
            try:
                run.registration.begin(expected)
            except Exception as caught:
                error = caught
        with self._saved_if_it_fails():
            raise_together(run.accelerator, error)

    def _end(self) -> None:
        """The run is over: by its last step, or because an evaluation says so."""
        run = self.run
        if reason := run.state.progress.reason_to_end(run.config.evaluation):
            run.tracker.say(f"ended after step {run.state.step}: {reason}")
        if not run.is_saved:
            run.save()
        run.export_policy()
        if run.registration is not None:
            run.registration.end()

    @contextmanager
    def _saved_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            if not self.run.is_saved:
                self.run.save()
            raise

    def _fit_normalizer(self) -> None:
        """Fixes gain and bias by responses of the policy as it starts."""
        run, num_wanted = self.run, self.run.config.reward.normalize_samples
        rollout, found, _ = self._roll_out(Purpose.NORMALIZATION, 0, num_wanted)
        normalizer, num_fitted = first_normalizer(rollout, run.state, found, num_wanted)
        run.state = replace(run.state, normalizer=normalizer)
        for event in found:
            run.tracker.say(str(event))
        run.tracker.say(f"scores are normalised: {normalizer}, by {num_fitted} responses")


def _way_on(output: Path, step: int, num_made: int) -> str:
    """After an update that broke off in the step after `step`, with `num_made` optimizer steps made."""
    saved, smaller = disk.saved_steps(output), "a smaller ppo.learning_rate or ppo.max_grad_norm"
    if num_made:
        back = f"resume, after step {saved[-1]}," if saved else "start again"
        return f"The {num_made} before it are not saved: {back} with {smaller}"
    earlier = [one for one in saved if one < step]
    back = f"remove it and resume, after step {earlier[-1]}," if earlier else "start again"
    return (
        f"{disk.checkpoint_path(output, step)} is the state before it, where the same settings have the same gradient: "
        f"resume with another kl.coefficient, or {back} with {smaller}"
    )
