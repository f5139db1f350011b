"""The combinations of settings that make no sense, and what to do about each: a table for each section."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from ppo_client.ppo.config import (
        CriticConfig,
        DataConfig,
        EvaluationConfig,
        KLConfig,
        PPOConfig,
        RolloutConfig,
        TrainConfig,
    )

Rules: TypeAlias = list[tuple[bool, str]]
"""Whether a rule is kept, and what to say where it is not."""


def broken_rules(config: PPOConfig) -> list[str]:
    """What is wrong with the settings together, each with what to do about it."""
    rules = [
        *_policy_rules(config),
        *_critic_rules(config.critic),
        *_data_rules(config.data),
        *_rollout_rules(config.rollout),
        *_reward_rules(config),
        *_kl_rules(config.kl),
        *_ppo_rules(config),
        *_evaluation_rules(config.evaluation),
        *_train_rules(config.train),
    ]
    return [text for is_kept, text in rules if not is_kept]


def _policy_rules(config: PPOConfig) -> Rules:
    policy, lora = config.policy, config.lora
    return [
        (bool(policy.model), "policy.model is missing: give the directory of the starting policy"),
        (
            policy.dtype == "float32" or lora.rank > 0,
            f"policy.dtype is {policy.dtype}: most of Adam's steps are too small to change a weight of that precision, "
            'so next to nothing would be learnt: set train.mixed_precision = "bf16" instead',
        ),
        (lora.rank >= 0 and lora.alpha > 0, "lora.rank must not be negative, and lora.alpha must be above 0"),
        (
            lora.rank > 0 or not (lora.target_modules or lora.merge),
            "lora.target_modules and lora.merge are for adapters: set lora.rank, or remove them",
        ),
    ]


def _critic_rules(critic: CriticConfig) -> Rules:
    return [
        (
            not critic.model or critic.kind == "separate",
            'critic.model is the trunk of a separate critic: set critic.kind = "separate", or remove critic.model',
        ),
        (
            not critic.init or critic.kind == "separate",
            'a reward model is the start of a separate critic: set critic.kind = "separate", or remove critic.init',
        ),
        (
            not (critic.init and critic.model),
            "critic.init and critic.model both say where the critic's trunk starts: remove one",
        ),
        (
            0 <= critic.learning_rate < math.inf and (not critic.learning_rate or critic.kind == "separate"),
            'critic.learning_rate, finite and at least 0, is a separate critic\'s: set critic.kind = "separate", or '
            "remove it",
        ),
    ]


def _data_rules(data: DataConfig) -> Rules:
    return [
        (bool(data.prompts), "data.prompts is missing: give a file of prompts"),
        (
            not data.where or "=" in data.where,
            f'data.where is {data.where!r}: write it as "field=value"',
        ),
        (data.max_prompt_tokens >= 1, "data.max_prompt_tokens must be at least 1"),
    ]


def _rollout_rules(rollout: RolloutConfig) -> Rules:
    return [
        (
            rollout.temperature > 0,
            f"rollout.temperature is {rollout.temperature}: PPO needs a policy that samples, so it must be above 0",
        ),
        (rollout.max_response_tokens >= 1, "rollout.max_response_tokens must be at least 1"),
        (
            0 <= rollout.min_response_tokens <= rollout.max_response_tokens,
            f"rollout.min_response_tokens is {rollout.min_response_tokens}: it must lie between 0 and "
            f"rollout.max_response_tokens ({rollout.max_response_tokens})",
        ),
        (
            min(rollout.micro_batch_size, rollout.score_chunk_size) >= 1,
            "rollout.micro_batch_size and rollout.score_chunk_size must be at least 1",
        ),
        (
            rollout.max_importance_weight >= 1,
            "rollout.max_importance_weight must be at least 1: below, on-policy responses would be weighted down, too",
        ),
        (
            rollout.generator == "own" or (rollout.max_staleness == 0 and rollout.log_probs != "sampling"),
            'rollout.generator = "vllm" needs rollout.max_staleness = 0, for stale responses cannot show whether it '
            'has the policy\'s weights, and rollout.log_probs other than "sampling"',
        ),
        (
            0 < rollout.vllm_memory_share < 1 and rollout.vllm_max_gap > 0,
            "rollout.vllm_memory_share must lie between 0 and 1, and rollout.vllm_max_gap be above 0",
        ),
    ]


def _reward_rules(config: PPOConfig) -> Rules:
    reward, rollout = config.reward, config.rollout
    fixed_length = rollout.min_response_tokens == rollout.max_response_tokens
    given = (reward.empty_score, reward.missing_eos_score, reward.missing_eos_penalty)
    return [
        (
            bool(reward.model or reward.models),
            'reward.model is missing: give a selector, for example "helpfulness@stable"',
        ),
        (
            not (reward.model and reward.models),
            "reward.model and reward.models both name what gives the reward: remove one",
        ),
        (
            all(part.model and part.weight and math.isfinite(part.weight) for part in reward.models),
            "each of reward.models needs a model, and a finite weight that is not 0",
        ),
        (
            len({part.model for part in reward.models}) == len(reward.models),
            "reward.models names a model twice: add their weights up instead",
        ),
        (
            not (reward.calibrated and reward.models),
            "reward.calibrated is for reward.model: set calibrated in each of reward.models instead",
        ),
        (reward.lease_s >= 10, "reward.lease_s must be at least 10"),
        (
            not fixed_length or (reward.missing_eos_penalty is None and reward.missing_eos_score is None),
            "all responses have the same length and none ends with EOS, so reward.missing_eos_penalty or _score would "
            "strike each of them: remove it, or set rollout.min_response_tokens below rollout.max_response_tokens",
        ),
        (
            reward.missing_eos_penalty is None or reward.missing_eos_score is None,
            "reward.missing_eos_penalty and reward.missing_eos_score exclude each other: remove one",
        ),
        (
            reward.missing_eos_penalty is None or reward.missing_eos_penalty > 0,
            "reward.missing_eos_penalty is subtracted, so it must be above 0",
        ),
        (
            all(math.isfinite(number or 0) for number in given),
            "reward.empty_score, missing_eos_score and missing_eos_penalty must be finite, or no gradient would be",
        ),
        (
            "{prompt}" in reward.prompt_template,
            'reward.prompt_template has no "{prompt}", so the reward model would not see the prompt',
        ),
        (
            reward.input == "text" or reward.prompt_template == "{prompt}",
            'reward.prompt_template is for text: set reward.input = "text", or remove the template',
        ),
        (reward.clip is None or reward.clip > 0, "reward.clip must be above 0; remove it to clip nothing"),
        (reward.timeout_s > 0, "reward.timeout_s must be above 0"),
        (reward.patience_s >= 0, "reward.patience_s must not be negative"),
        (
            reward.normalize_samples == 0 or reward.normalize_samples >= 16,
            f"reward.normalize_samples is {reward.normalize_samples}: too few for a standard deviation; "
            "use at least 16, or 0 to leave scores as they are",
        ),
    ]


def _kl_rules(kl: KLConfig) -> Rules:
    return [
        (0 <= kl.coefficient < math.inf, "kl.coefficient must be finite and not negative"),
        (
            kl.controller != "adaptive" or (kl.coefficient > 0 and kl.target > 0 and kl.horizon > 0),
            "the adaptive controller multiplies, so kl.coefficient, kl.target and kl.horizon must be above 0",
        ),
        (
            0 <= kl.final_coefficient < math.inf and kl.schedule_steps >= 1,
            "kl.final_coefficient must be finite and not negative, and kl.schedule_steps be at least 1",
        ),
    ]


def _ppo_rules(config: PPOConfig) -> Rules:
    ppo, num_steps = config.ppo, config.train.num_steps
    return [
        (
            min(ppo.batch_size, ppo.num_epochs, ppo.num_minibatches) >= 1,
            "ppo.batch_size, ppo.num_epochs and ppo.num_minibatches must be at least 1",
        ),
        (
            ppo.num_minibatches < 1 or ppo.batch_size % ppo.num_minibatches == 0,
            f"ppo.batch_size ({ppo.batch_size}) is not a multiple of ppo.num_minibatches ({ppo.num_minibatches})",
        ),
        (ppo.micro_batch_size is None or ppo.micro_batch_size >= 1, "ppo.micro_batch_size must be at least 1"),
        (0 < ppo.learning_rate < math.inf, "ppo.learning_rate must be above 0, and finite"),
        (
            0 <= ppo.adam_beta1 < 1 and 0 <= ppo.adam_beta2 < 1,
            "ppo.adam_beta1 and ppo.adam_beta2 must be at least 0 and below 1",
        ),
        (
            ppo.adam_epsilon >= 0 and ppo.weight_decay >= 0,
            "ppo.adam_epsilon and ppo.weight_decay must not be negative",
        ),
        (
            0 <= ppo.warmup_steps < max(num_steps, 1),
            f"ppo.warmup_steps ({ppo.warmup_steps}) must be below train.num_steps ({num_steps})",
        ),
        (ppo.max_grad_norm > 0, "ppo.max_grad_norm must be above 0; use inf to clip nothing"),
        (ppo.clip_range > 0 and ppo.value_clip_range > 0, "ppo.clip_range and value_clip_range must be above 0"),
        (
            ppo.dual_clip is None or ppo.dual_clip > 1,
            "ppo.dual_clip must be above 1, or no ratio at all would be left to learn by; remove it for no bound",
        ),
        (
            0 <= ppo.value_coefficient < math.inf and 0 <= ppo.entropy_coefficient < math.inf,
            "ppo.value_coefficient and ppo.entropy_coefficient must be finite and not negative",
        ),
        (0 <= ppo.gamma <= 1 and 0 <= ppo.gae_lambda <= 1, "ppo.gamma and ppo.gae_lambda must lie in 0..1"),
        (ppo.stop_kl is None or ppo.stop_kl > 0, "ppo.stop_kl must be above 0; remove it to never stop early"),
    ]


def _evaluation_rules(evaluation: EvaluationConfig) -> Rules:
    return [
        (
            min(evaluation.every_steps, evaluation.count, evaluation.batch_size) >= 1 and evaluation.patience >= 0,
            "evaluation.every_steps, count and batch_size must be at least 1, and evaluation.patience not negative",
        ),
        (
            not evaluation.where or "=" in evaluation.where,
            f'evaluation.where is {evaluation.where!r}: write it as "field=value"',
        ),
        (
            bool(evaluation.prompts) or not (evaluation.patience or evaluation.max_kl is not None or evaluation.model),
            "evaluation.patience, max_kl and model need an evaluation: set evaluation.prompts",
        ),
        (evaluation.max_kl is None or evaluation.max_kl > 0, "evaluation.max_kl must be above 0"),
    ]


def _train_rules(train: TrainConfig) -> Rules:
    return [
        (bool(train.output), "train.output is missing: give a directory for logs and checkpoints"),
        (train.num_steps >= 1, "train.num_steps must be at least 1"),
        (0 <= train.seed < 2**32, "train.seed must lie in 0..2**32 − 1"),
        (train.checkpoint_every_steps >= 0, "train.checkpoint_every_steps must not be negative"),
        (train.keep_checkpoints >= 1, "train.keep_checkpoints must be at least 1"),
        (
            train.samples_every_steps >= 0 and train.samples_per_step >= 0,
            "train.samples_every_steps and train.samples_per_step must not be negative",
        ),
    ]
