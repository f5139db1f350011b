"""`python -m bench.ppo.trl_ppo WARM_UP JOB`: trl 1.12's PPOTrainer on the toy task, step by step.

Runs in an environment of its own, for trl 1.13 removed the trainer.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import (
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer

from bench.ppo import toy
from bench.ppo.child import Conductor
from bench.ppo.toy import Job


class EvenTokens(nn.Module):
    """A reward model as trl wants it: a backbone with hidden states, and a head that reads the score off them."""

    base_model_prefix = "backbone"

    def __init__(self) -> None:
        super().__init__()
        self.backbone = _Ids()
        self.last_mean = 0.0

    def score(self, ids: Tensor) -> Tensor:
        values = [toy.even_share(row) for row in ids[:, toy.PROMPT_TOKENS :].tolist()]
        self.last_mean = sum(values) / len(values)
        return torch.tensor(values)[:, None, None].expand(*ids.shape, 1)


class _Ids(nn.Module):
    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        return SimpleNamespace(hidden_states=[input_ids])


class _Steps(TrainerCallback):
    """A step is what lies between two of these moments; what trl clears up after one counts for the next."""

    def __init__(self, conductor: Conductor, rewards: EvenTokens) -> None:
        self._conductor = conductor
        self._rewards = rewards

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._conductor.wait()

    def on_step_end(self, _arguments: Any, state: Any, *_: Any, **__: Any) -> None:
        self._conductor.answer(score=self._rewards.last_mean)
        if state.global_step < state.max_steps:
            self._conductor.wait()


def run(job: Job, conductor: Conductor | None = None) -> None:
    """All steps of the job; each when the conductor says so."""
    policy = Path(job.folder) / "policy"
    np.random.seed(job.seed)  # trl shuffles minibatches by it, and seeds it nowhere
    arguments = PPOConfig(
        output_dir=str(Path(job.folder) / "trl"),
        seed=job.seed,
        per_device_train_batch_size=toy.BATCH_SIZE,
        gradient_accumulation_steps=1,
        total_episodes=job.num_steps * toy.BATCH_SIZE,
        num_ppo_epochs=toy.NUM_EPOCHS,
        num_mini_batches=toy.NUM_MINIBATCHES,
        local_rollout_forward_batch_size=toy.BATCH_SIZE,
        response_length=job.response_tokens,
        temperature=toy.TEMPERATURE,
        learning_rate=toy.LEARNING_RATE,
        adam_epsilon=toy.ADAM_EPSILON,
        kl_coef=toy.KL_COEFFICIENT,
        num_sample_generations=0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=False,
        use_cpu=True,
    )
    rewards = EvenTokens()
    callbacks = [_Steps(conductor, rewards)] if conductor else []
    # The id of padding and of EOS is beyond the vocabulary, so that no response can hold it and all are of one length.
    words = {f"t{number}": number for number in range(job.vocab_size)} | {"[PAD]": job.vocab_size}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="t0")), pad_token="[PAD]", eos_token="[PAD]"
    )
    rows = toy.prompts(job)
    PPOTrainer(
        args=arguments,
        processing_class=tokenizer,
        model=GPT2LMHeadModel.from_pretrained(policy),
        ref_model=GPT2LMHeadModel.from_pretrained(policy),
        reward_model=rewards,
        value_model=GPT2ForSequenceClassification.from_pretrained(policy, num_labels=1),
        train_dataset=Dataset.from_list([{"input_ids": row} for row in rows]),
        callbacks=callbacks,
    ).train()


if __name__ == "__main__":
    stage = Conductor()
    run(Job.from_json(sys.argv[1]))  # imports what is imported on first use
    stage.begin_memory()
    run(Job.from_json(sys.argv[2]), stage)
