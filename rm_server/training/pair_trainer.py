"""TRL's RewardTrainer over batches in which a text stands once: the same Bradley–Terry loss, fewer forward passes."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader
from trl import RewardTrainer

from rm_server.training.batching import PairBatchSampler


class PairTrainer(RewardTrainer):
    """Trains on ready token ids, so no second tokenisation can differ from serving's, in `PairBatchSampler`'s order.

    The loss is TRL's own: mean of -log sigmoid(score of chosen - score of rejected).
    """

    def __init__(self, *args: Any, batch_sampler: PairBatchSampler, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._batch_sampler = batch_sampler

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches as the sampler says; `_train_batch_size` plays no part."""
        return self.accelerator.prepare(  # type: ignore[no-any-return]
            DataLoader(self.train_dataset, batch_sampler=self._batch_sampler, collate_fn=self.data_collator)
        )

    def compute_loss(
        self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss over the scores of ``rows``: chosen first, then rejected."""
        rows = inputs.pop("rows")
        return super().compute_loss(_Repeating(model, rows), inputs, return_outputs, num_items_in_batch)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: checkpoints are ours alone, and the version has its own record, training.json."""

    def _send_telemetry(self) -> None:
        """TRL reports its use to the Hugging Face hub; a server's training sends nothing anywhere."""


class _Repeating:
    """The model as TRL's loss calls it; gives each text's logits as often as pairs have the text."""

    def __init__(self, model: Any, rows: torch.Tensor) -> None:
        self.model = model
        self.rows = rows
        self.training = model.training

    def __call__(self, **inputs: Any) -> Any:
        outputs = self.model(**inputs)
        outputs.logits = outputs.logits[self.rows]
        return outputs
