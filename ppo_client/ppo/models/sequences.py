"""Prompts and responses as padded tensors: prompts end, and responses begin, at the same column.

A mask that is True means "counts". Padding is told from lengths and from the sampled EOS, never from the pad id,
which may well be the EOS id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True, slots=True)
class Prompts:
    """A batch of prompts, padded on the left."""

    ids: Tensor
    """int64 (B, P)"""
    mask: Tensor
    """bool (B, P)"""

    @classmethod
    def collate(cls, prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device | None = None) -> Prompts:
        width = max(map(len, prompts))
        ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in prompts], device=device)
        mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in prompts], device=device)
        return cls(ids, mask)


@dataclass(frozen=True, slots=True)
class Sequences:
    """A batch of prompts with one response each; prompts padded on the left, responses on the right."""

    prompts: Prompts
    response_ids: Tensor
    """int64 (B, R)"""
    response_mask: Tensor
    """bool (B, R): the sampled tokens, EOS included; at least one in each row, without a gap; none where the episode is
    dropped"""

    def __len__(self) -> int:
        return self.response_ids.shape[0]

    def select(self, rows: Tensor) -> Sequences:
        """The rows `rows`, an int64 tensor, without the columns that are padding in all of them."""
        prompts = Prompts(self.prompts.ids[rows], self.prompts.mask[rows])
        return Sequences(prompts, self.response_ids[rows], self.response_mask[rows]).trimmed()

    def trimmed(self) -> Sequences:
        """Without the columns that are padding in every row; response columns keep their numbers."""
        prompt_width = int(self.prompts.mask.sum(1).max())
        response_width = max(1, int(self.response_mask.sum(1).max()))  # all may be dropped, and a model reads something
        prompts = Prompts(self.prompts.ids[:, -prompt_width:], self.prompts.mask[:, -prompt_width:])
        return Sequences(prompts, self.response_ids[:, :response_width], self.response_mask[:, :response_width])


def last_token(response_mask: Tensor) -> Tensor:
    """Column of each response's last token: EOS, or the last one before it was cut. (B, R) bool to (B,) int64.

    −1 where there is none.
    """
    return response_mask.sum(1) - 1


def concatenate(parts: Sequence[Sequences], pad_id: int) -> Sequences:
    """All rows of `parts`, in order, padded to the widest prompt and response."""
    prompt_width = max(part.prompts.ids.shape[1] for part in parts)
    response_width = max(part.response_ids.shape[1] for part in parts)

    def left(values: Tensor, fill: int) -> Tensor:
        return pad(values, (prompt_width - values.shape[1], 0), value=fill)

    def right(values: Tensor, fill: int) -> Tensor:
        return pad(values, (0, response_width - values.shape[1]), value=fill)

    return Sequences(
        Prompts(
            torch.cat([left(part.prompts.ids, pad_id) for part in parts]),
            torch.cat([left(part.prompts.mask, 0) for part in parts]),
        ),
        torch.cat([right(part.response_ids, pad_id) for part in parts]),
        torch.cat([right(part.response_mask, 0) for part in parts]),
    )
