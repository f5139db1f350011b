"""GRPO or RLOO with TRL on the demo's small policy, with rewards from a running server.

python examples/adapters_trl.py --server localhost:50051 --model story@stable --steps 20
python examples/adapters_trl.py --server localhost:50051 --model story@stable --steps 20 --trainer rloo --awaited
"""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets import load_dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from ppo_client.adapters.trl import async_remote_reward, remote_reward

EXAMPLES = Path(__file__).parent
TRAINERS = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", help="host:port; default: RM_TARGET")
    parser.add_argument("--model", default="story@stable", help="selector of the reward model")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--trainer", choices=TRAINERS, default="grpo")
    parser.add_argument("--awaited", action="store_true", help="the reward function as a coroutine")
    parser.add_argument("--output", default="trl_run")
    args = parser.parse_args()

    prompts = load_dataset("json", data_files=str(EXAMPLES / "data/story_openings.jsonl.gz"), split="train")
    trainer_class, config_class = TRAINERS[args.trainer]
    reward = async_remote_reward if args.awaited else remote_reward
    trainer = trainer_class(
        model=str(EXAMPLES / "policy"),
        reward_funcs=reward(args.server, args.model, name="story"),
        train_dataset=prompts.select_columns(["prompt"]),
        args=config_class(
            output_dir=args.output,
            max_steps=args.steps,
            per_device_train_batch_size=16,
            num_generations=8,
            max_completion_length=32,
            learning_rate=1e-5,
            bf16=False,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
        ),
    )
    trainer.train()
    for entry in trainer.state.log_history:
        if "reward" in entry:
            print(f"step {entry['step']}: reward {entry['reward']:.3f}, version {entry['story/version']:.0f}")


if __name__ == "__main__":
    main()
