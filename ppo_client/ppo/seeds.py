"""Every random number of a run as a pure function of the seed and what it is for.

Nothing is drawn from a shared stream, so a resumed run, another number of processes or another micro-batch size
sees the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Purpose(IntEnum):
    """What numbers are for; keeps the streams apart. Never renumber: a resumed run must draw the same again."""

    PROMPT_ORDER = 1
    SAMPLING = 2
    MINIBATCHES = 3
    NORMALIZATION = 4
    ADAPTER = 5
    EVALUATION = 6


def numpy_generator(seed: int, purpose: Purpose, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, purpose, *key))))


def uniforms(seed: int, purpose: Purpose, step: int, rows: Sequence[int], num_tokens: int) -> Tensor:
    """One number in [0, 1) for each token that may be sampled.

    `rows` are positions in the batch of the whole step. Returns float64 (len(rows), num_tokens).
    """
    drawn = [numpy_generator(seed, purpose, step, row).random(num_tokens) for row in rows]
    return torch.from_numpy(np.stack(drawn))


def prompt_rows(seed: int, step: int, batch_size: int, num_prompts: int) -> list[int]:
    """Which prompts step `step` (from 1) uses: each epoch is a fresh permutation, read on without a gap."""
    first = (step - 1) * batch_size
    rows: list[int] = []
    while len(rows) < batch_size:
        epoch, offset = divmod(first + len(rows), num_prompts)
        order = numpy_generator(seed, Purpose.PROMPT_ORDER, epoch).permutation(num_prompts)
        rows += order[offset : offset + batch_size - len(rows)].tolist()
    return rows


def minibatch_order(seed: int, step: int, epoch: int, batch_size: int) -> list[int]:
    """The order in which the inner epoch `epoch` of step `step` goes through the batch."""
    order: list[int] = numpy_generator(seed, Purpose.MINIBATCHES, step, epoch).permutation(batch_size).tolist()
    return order
