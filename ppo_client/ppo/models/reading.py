"""Forward passes without gradients: as many rows at a time as the size of their logits allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ppo_client.ppo.models.sequences import Sequences
from ppo_client.ppo.policy import Policy

# Little enough to be no peak beside the update's, enough to lose no time by.
_LOGITS_ON_CPU, _LOGITS = 2**22, 2**28


def read_in_parts(policy: Policy, sequences: Sequences, read: Callable[[Sequences], Sequence[Tensor]]) -> list[Tensor]:
    """What `read` finds, as float32 (B, R) each, 0 where the response mask is False.

    `policy` says how large the logits are. Responses of similar length are read together, without their padding.
    """
    mask = sequences.response_mask
    # Of what is the same in all processes, so that all make as many forward passes.
    logits_per_row = mask.shape[1] * policy.model.config.get_text_config().vocab_size
    num_rows = max(1, (_LOGITS_ON_CPU if mask.device.type == "cpu" else _LOGITS) // logits_per_row)
    whole: list[Tensor] = []
    for rows in mask.sum(1).argsort(stable=True).split(num_rows):
        found = read(sequences.select(rows))
        whole = whole or [torch.zeros(mask.shape, device=mask.device) for _ in found]
        for all_rows, values in zip(whole, found, strict=True):
            all_rows[rows, : values.shape[1]] = values
    return [torch.where(mask, all_rows, 0.0) for all_rows in whole]
