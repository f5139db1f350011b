"""Combinations that make no sense are refused, all of them at once, with what to change."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from tiny_policies import make_config

from ppo_client.ppo.config import PPOConfig
from ppo_client.ppo.errors import ConfigError


def test_what_is_required_is_named_together() -> None:
    with pytest.raises(ConfigError) as caught:
        PPOConfig()
    for name in ("policy.model", "data.prompts", "reward.model", "train.output"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("section", "values", "advice"),
    [
        ("ppo", {"batch_size": 10, "num_minibatches": 4}, r"batch_size \(10\) is not a multiple .* \(4\)"),
        ("ppo", {"learning_rate": 0.0}, "learning_rate must be above 0"),
        ("ppo", {"learning_rate": math.inf}, "above 0, and finite"),
        ("ppo", {"adam_beta2": 1.0}, "must be at least 0 and below 1"),
        ("ppo", {"weight_decay": -0.1}, "weight_decay must not be negative"),
        ("ppo", {"value_coefficient": math.inf}, "must be finite"),
        ("ppo", {"stop_kl": -1.0}, "remove it to never stop early"),
        ("ppo", {"gamma": 1.5}, r"must lie in 0\.\.1"),
        ("ppo", {"max_grad_norm": 0.0}, "use inf to clip nothing"),
        ("ppo", {"warmup_steps": 2}, r"below train.num_steps \(2\)"),
        ("ppo", {"micro_batch_size": 0}, "micro_batch_size must be at least 1"),
        ("rollout", {"temperature": 0.0}, "a policy that samples"),
        ("rollout", {"min_response_tokens": 9}, r"between 0 and rollout.max_response_tokens \(6\)"),
        ("reward", {"missing_eos_penalty": 1.0, "missing_eos_score": -1.0}, "exclude each other"),
        ("reward", {"missing_eos_penalty": -1.0}, "is subtracted, so it must be above 0"),
        ("reward", {"missing_eos_penalty": math.inf}, "must be finite"),
        ("reward", {"empty_score": -math.inf}, "must be finite"),
        ("reward", {"normalize_samples": 3}, "use at least 16, or 0"),
        ("reward", {"clip": 0.0}, "remove it to clip nothing"),
        ("reward", {"prompt_template": "no place"}, "would not see the prompt"),
        ("reward", {"prompt_template": "Q: {prompt}"}, 'set reward.input = "text"'),
        ("critic", {"model": "elsewhere"}, 'set critic.kind = "separate"'),
        ("critic", {"init": "reward"}, 'set critic.kind = "separate", or remove critic.init'),
        ("critic", {"kind": "separate", "learning_rate": math.inf}, "critic.learning_rate, finite"),
        ("critic", {"learning_rate": 1e-4}, "is a separate critic's"),
        (
            "critic",
            {"kind": "separate", "init": "reward", "model": "trunk"},
            "both say where the critic's trunk starts",
        ),
        ("lora", {"rank": -1}, "lora.rank must not be negative"),
        ("lora", {"rank": 2, "alpha": 0}, "lora.alpha must be above 0"),
        ("lora", {"merge": True}, "set lora.rank, or remove them"),
        ("lora", {"target_modules": ["q_proj"]}, "set lora.rank, or remove them"),
        ("kl", {"controller": "adaptive", "coefficient": 0.0}, "the adaptive controller multiplies"),
        ("kl", {"coefficient": math.inf}, "kl.coefficient must be finite"),
        ("kl", {"controller": "scheduled", "schedule_steps": 0}, "kl.schedule_steps be at least 1"),
        ("kl", {"controller": "scheduled", "final_coefficient": -0.1}, "must be finite and not negative"),
        ("ppo", {"dual_clip": 1.0}, "dual_clip must be above 1"),
        ("policy", {"dtype": "bfloat16"}, 'set train.mixed_precision = "bf16" instead'),
        ("data", {"where": "train"}, "field=value"),
        ("train", {"seed": 2**32}, r"seed must lie in 0\.\.2\*\*32"),
        ("train", {"num_steps": 0}, "num_steps must be at least 1"),
        ("train", {"keep_checkpoints": 0}, "keep_checkpoints must be at least 1"),
    ],
)
def test_refused(tmp_path: Path, section: str, values: dict[str, Any], advice: str) -> None:
    with pytest.raises(ConfigError, match=advice):
        make_config(tmp_path, **{section: values})


def test_a_fixed_length_leaves_no_room_for_an_eos_rule(tmp_path: Path) -> None:
    fixed = {"max_response_tokens": 6, "min_response_tokens": 6}
    assert make_config(tmp_path, rollout=fixed).rollout.min_response_tokens == 6
    with pytest.raises(ConfigError, match="would strike each of them"):
        make_config(tmp_path, rollout=fixed, reward={"missing_eos_penalty": 1.0})


def test_optimizer_steps_are_counted(tmp_path: Path) -> None:
    assert make_config(tmp_path, ppo={"num_epochs": 3, "num_minibatches": 4}).optimizer_steps_per_step == 12


def test_below_an_adapter_weights_may_be_bfloat16(tmp_path: Path) -> None:
    assert make_config(tmp_path, policy={"dtype": "bfloat16"}, lora={"rank": 2}).policy.dtype == "bfloat16"
