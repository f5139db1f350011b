"""PPO in the order of the algorithm: roll out, ask for scores, advantages, update, adjust KL, log, save."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ppo_client.ppo.advantages import gae, whiten
from ppo_client.ppo.checkpoint import RunState
from ppo_client.ppo.config import PPOConfig
from ppo_client.ppo.distributed import gather_rollout, is_true_anywhere, own_rows, raise_together
from ppo_client.ppo.errors import EmptyResponse
from ppo_client.ppo.kl import kl_per_token, next_coefficient
from ppo_client.ppo.metrics import metrics_row, sample_rows
from ppo_client.ppo.normalize import ScoreNormalizer
from ppo_client.ppo.reward_source import RewardSource
from ppo_client.ppo.rewards import shaped_scores, token_rewards
from ppo_client.ppo.rollout import Rollout
from ppo_client.ppo.run import resume_run, start_run
from ppo_client.ppo.seeds import Purpose, prompt_rows, uniforms
from ppo_client.ppo.update import Batch
from ppo_client.ppo.versions import VersionChange, changes, follows


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

        Where the step waits for a service that is away, it is given up: RewardServiceAway, after a checkpoint.
        """
        self.run.worker.desk.stop.is_wanted = True

    def train(self) -> RunState:
        """Runs until `train.num_steps`; a checkpoint is there when it returns, or when scores cannot be had."""
        run, train = self.run, self.run.config.train
        try:
            if run.state.step == 0 and run.config.reward.normalize_samples and run.state.version is None:
                self._fit_normalizer()
            while run.state.step < train.num_steps:
                self.train_step()

                # 7. Save.
                is_due = train.checkpoint_every_steps and run.state.step % train.checkpoint_every_steps == 0
                stops = is_true_anywhere(run.worker.desk.stop.is_wanted)
                if is_due or stops or run.state.step == train.num_steps:
                    run.save()
                if stops:
                    return run.state
            run.export_policy()
            return run.state
        finally:
            run.close()

    def train_step(self) -> None:
        """One batch of episodes, and what is learnt from it."""
        run, config = self.run, self.run.config
        step, started, kl_coefficient = run.state.step + 1, time.perf_counter(), run.state.kl_coefficient

        # 1. Roll out; scores are asked for meanwhile.
        rollout, found = self._roll_out(Purpose.SAMPLING, step, config.ppo.batch_size)
        mask = rollout.sequences.response_mask

        # 2. Rewards: minus the KL penalty at each token, plus the score at the last.
        kl = kl_per_token(rollout.log_probs, rollout.reference_log_probs, config.kl.estimator)
        scores = shaped_scores(rollout.scores, rollout.has_eos, run.state.normalizer, config.reward)
        rewards = token_rewards(scores, kl, mask, kl_coefficient)
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
        run.actor_critic.train()
        batch = Batch(rollout.sequences, rollout.log_probs, rollout.values, advantages, returns)
        update = run.updater.update(batch, step)
        update_s = time.perf_counter() - update_started

        # 5. Adjust the KL coefficient.
        episode_kl = float((rollout.log_probs - rollout.reference_log_probs).sum(1).mean())
        num_episodes = config.ppo.batch_size
        run.state = replace(
            run.state,
            step=step,
            episodes=run.state.episodes + num_episodes,
            kl_coefficient=next_coefficient(config.kl, kl_coefficient, episode_kl, num_episodes),
        )

        # 6. Log.
        if found:
            run.tracker.say(f"step {step}: " + "; ".join(map(str, found)))
        row = metrics_row(
            run.state, rollout, update, returns, kl=episode_kl, kl_coefficient=kl_coefficient, changes=found
        )
        run.tracker.step(row | {"update_s": update_s, "step_s": time.perf_counter() - started})
        every = config.train.samples_every_steps
        if every and (step % every == 0 or step == 1):
            run.tracker.samples(sample_rows(step, rollout, config.train.samples_per_step))

    def _roll_out(self, purpose: Purpose, step: int, num_episodes: int) -> tuple[Rollout, list[VersionChange]]:
        """`num_episodes` over all processes, and what changed about the reward's version.

        Nothing has been learnt from them yet: where they cannot be had, the run is saved as it is, and can go on.
        """
        run, config = self.run, self.run.config
        error: Exception | None = None
        try:
            own = own_rows(num_episodes, run.accelerator.process_index, run.accelerator.num_processes)
            rows = prompt_rows(config.train.seed, max(step, 1), num_episodes, len(run.prompts))
            numbers = uniforms(config.train.seed, purpose, step, own, config.rollout.max_response_tokens)
            run.actor_critic.eval()
            with run.accelerator.autocast():
                local = run.worker.collect([run.prompts[rows[row]] for row in own], numbers)
        except Exception as caught:
            error = caught
        try:
            raise_together(run.accelerator, error)
            rollout = gather_rollout(run.accelerator, local, run.actor_critic.policy.pad_id)
            expected, found = changes(
                run.state.version,
                (record.version for record in rollout.records if record.version),
                selector=config.reward.model,
                may_follow=follows(config.reward.model, config.reward.on_version_change),
            )
            if expected is None:
                raise EmptyResponse(f"all {num_episodes} responses are empty, so there is no score to learn from")
        except Exception:
            if not run.is_saved:
                run.save()
            raise
        run.state = replace(run.state, version=expected)
        return rollout, found

    def _fit_normalizer(self) -> None:
        """Fixes gain and bias by responses of the policy as it starts."""
        run = self.run
        rollout, _ = self._roll_out(Purpose.NORMALIZATION, 0, run.config.reward.normalize_samples)
        run.state = replace(run.state, normalizer=ScoreNormalizer.fit(rollout.scores))
        run.tracker.say(f"scores are normalised: {run.state.normalizer}, by {len(rollout.scores)} responses")
