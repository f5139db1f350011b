"""A DPO baseline by TRL's DPOTrainer, on the preferences that the demo's reward models are trained with.

    rm-server serve --home demo_work/home            # story@1 and story@2, which `make demo` has left there
    ppo-client train examples/demo/run.toml --policy examples/policy --steps 60 --output runs/a \\
        --prompts examples/data/story_openings.jsonl.gz --reward-target localhost:50051 --reward-model story@1 \\
        --set evaluation.prompts=examples/data/story_openings.jsonl.gz --set evaluation.where=split=held_out \\
        --set evaluation.model=story@2
    python examples/dpo_baseline.py --output runs/dpo
    ppo-client evaluate --policy runs/dpo/policy --like runs/a --server localhost:50051 --json > runs/dpo.json
    ppo-client report runs/a --compare runs/dpo.json

DPO needs no reward model and no sampling: it raises the likelihood of the chosen text against the rejected one. So it
is what a PPO run has to beat, on the same prompts, by the same second opinion. Here it learns from stories that other
models wrote, to prompts that are no such openings, so this is no measure of what DPO can do at its best.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import DPOConfig, DPOTrainer

EXAMPLES = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default=str(EXAMPLES / "policy"), help="where it starts, and its reference")
    parser.add_argument("--preferences", default=str(EXAMPLES / "data" / "hanna_train.jsonl.gz"))
    parser.add_argument("--output", default="runs/dpo")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=1600, help="of the file, in a shuffled order")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=160, help="tokens of prompt and text; the rest is cut")
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--beta", type=float, default=0.1, help="how closely the reference is kept to")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    set_seed(args.seed)
    preferences = load_dataset("json", data_files=args.preferences, split="train").shuffle(seed=args.seed)
    preferences = preferences.select(range(min(args.pairs, len(preferences))))
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(args.policy, dtype=torch.float32),
        ref_model=AutoModelForCausalLM.from_pretrained(args.policy, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(args.policy),
        train_dataset=preferences.select_columns(["prompt", "chosen", "rejected"]),
        args=DPOConfig(
            output_dir=args.output,
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            max_length=args.max_length,
            learning_rate=args.learning_rate,
            beta=args.beta,
            bf16=False,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            seed=args.seed,
        ),
    )
    trainer.train()
    trainer.save_model(str(Path(args.output) / "policy"))
    for row in trainer.state.log_history:
        if "rewards/accuracies" in row:
            print(f"step {row['step']}: loss {row['loss']:.3f}, chosen preferred {row['rewards/accuracies']:.2f}")
    print(f"the policy is in {Path(args.output) / 'policy'}")


if __name__ == "__main__":
    main()
