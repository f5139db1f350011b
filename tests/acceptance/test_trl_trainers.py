"""TRL's own trainers learn from a reward that a real server computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_models import make_tokenizer
from tiny_policies import save_policy
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from ppo_client import RewardClient
from ppo_client.adapters.trl import remote_reward

NUM_STEPS = 40


def even_share(completion_ids: list[list[int]], **_columns: Any) -> list[float]:
    """What the server's rules model `even` computes."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


@pytest.mark.parametrize(("trainer_cls", "config_cls"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])
def test_it_learns(even_token_target: str, tmp_path: Path, trainer_cls: Any, config_cls: Any) -> None:
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    policy = save_policy(tmp_path / "policy", with_tokenizer=False)
    run = trainer_cls.__name__
    with RewardClient(even_token_target, run=run) as client:
        served = remote_reward(client, "even@stable", name="served", prompt_to_ids=tokenizer.encode)
        trainer = trainer_cls(
            model=str(policy),
            reward_funcs=[served, even_share],
            processing_class=tokenizer,
            train_dataset=Dataset.from_list([{"prompt": f"line {number}: "} for number in range(64)]),
            args=config_cls(
                output_dir=str(tmp_path / "run"),
                reward_weights=[1.0, 0.0],  # the second only watches the first
                per_device_train_batch_size=32,
                num_generations=8,
                max_completion_length=16,
                max_steps=NUM_STEPS,
                learning_rate=1e-2,
                lr_scheduler_type="constant",
                beta=0.0,
                seed=0,
                use_cpu=True,
                bf16=False,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
        )
        trainer.train()
        steps = [entry for entry in trainer.state.log_history if "reward" in entry]
        for step in steps:
            assert step["rewards/served/mean"] == pytest.approx(step["rewards/even_share/mean"], abs=1e-6)
            assert step["served/version"] == 1.0
        rewards = [step["reward"] for step in steps]
        assert len(rewards) == NUM_STEPS
        assert sum(rewards[:3]) / 3 < 0.6
        assert sum(rewards[-3:]) / 3 > 0.8, rewards
