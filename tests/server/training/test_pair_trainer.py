"""The loss is TRL's, and TRL's is the closed form, however often a text stands in the batch."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from datasets import Dataset
from trl import RewardConfig

from rm_server.training.batching import PairBatchSampler, PairCollator
from rm_server.training.pair_trainer import PairTrainer

ROWS = [
    {"chosen_ids": [5, 6, 7, 1], "rejected_ids": [8, 9, 1]},
    {"chosen_ids": [8, 9, 1], "rejected_ids": [10, 1]},
    {"chosen_ids": [5, 6, 7, 1], "rejected_ids": [10, 1]},
]


def make_trainer(tmp_path: Path, family: str, center_coefficient: float | None = None) -> PairTrainer:
    model = tiny_models.make_model(family)
    return PairTrainer(
        model=model,
        args=RewardConfig(
            output_dir=str(tmp_path),
            center_rewards_coefficient=center_coefficient,
            max_length=None,
            bf16=False,
            use_cpu=True,
            report_to="none",
            remove_unused_columns=False,
        ),
        data_collator=PairCollator(tiny_models.PAD_ID),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tiny_models.make_tokenizer(),
        batch_sampler=PairBatchSampler(["a", "a", "b"], [4, 3, 4], 3, seed=0),
    )


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("center", [None, 0.1])
def test_the_loss_is_the_mean_of_minus_log_sigmoid_of_the_difference(
    tmp_path: Path, family: str, center: float | None
) -> None:
    trainer = make_trainer(tmp_path, family, center)
    trainer.model.eval()
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, PairCollator(tiny_models.PAD_ID)(ROWS)).item()
        score = [
            [
                trainer.model(input_ids=torch.tensor([row[side]])).logits.item()
                for side in ("chosen_ids", "rejected_ids")
            ]
            for row in ROWS
        ]
    expected = float(np.mean([math.log1p(math.exp(rejected - chosen)) for chosen, rejected in score]))
    if center:
        expected += center * float(np.mean([(chosen + rejected) ** 2 for chosen, rejected in score]))
    assert loss == pytest.approx(expected, abs=1e-5)


def test_gradients_are_those_of_one_forward_pass_for_each_side_of_each_pair(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, "llama")
    trainer.model.eval()
    trainer.compute_loss(trainer.model, PairCollator(tiny_models.PAD_ID)(ROWS)).backward()
    shared = [parameter.grad.clone() for parameter in trainer.model.parameters() if parameter.grad is not None]
    trainer.model.zero_grad()
    for row in ROWS:
        sides = (trainer.model(input_ids=torch.tensor([row[side]])).logits for side in ("chosen_ids", "rejected_ids"))
        chosen, rejected = sides
        (-torch.nn.functional.logsigmoid(chosen - rejected).sum() / len(ROWS)).backward()
    apart = [parameter.grad for parameter in trainer.model.parameters() if parameter.grad is not None]
    assert len(shared) == len(apart) > 10
    for one, other in zip(shared, apart, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_batches_are_the_samplers(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, "bert")
    (batch,) = trainer.get_train_dataloader()
    assert batch["input_ids"].shape == (3, 4)  # three different texts in three pairs
    assert batch["rows"].shape == (6,)


def test_nothing_is_reported_to_anybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[object] = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda *args, **kwargs: sent.append(args))
    make_trainer(tmp_path, "bert")
    assert not sent
