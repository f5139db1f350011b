"""Which pairs go into which batch: pairs of a prompt together, for they share texts, which are then computed once.

InstructGPT trains so (Ouyang et al. 2022, section 3.5): all comparisons of a prompt in one batch need one forward pass
per completion instead of one per comparison. With a single pair per prompt it is length-grouped batching.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

SORTED_BATCHES = 32
"""Chunks for so many batches are sorted by length at a time: little padding, and an order that is still random."""


def plan_batches(chunk_sizes: Iterable[int], batch_size: int) -> list[tuple[int, ...]]:
    """Packs chunks into batches of at most ``batch_size`` pairs, greedily the largest that fits.

    Only sizes count, so every epoch has the same number of batches, whatever its shuffle.
    """
    left = Counter(chunk_sizes)
    plan = []
    while left:
        room, batch = batch_size, []
        while size := max((size for size in left if size <= room), default=0):
            batch.append(size)
            room -= size
            left[size] -= 1
            if not left[size]:
                del left[size]
        plan.append(tuple(batch))
    return plan


def split_evenly(members: Sequence[int], most: int) -> list[list[int]]:
    """As few parts as possible of at most ``most`` members, sizes differing by one at most."""
    num_parts = -(-len(members) // most)
    return [list(members[i::num_parts]) for i in range(num_parts)]


class PairBatchSampler(Sampler[list[int]]):
    """Batches of indices of pairs; what epoch ``e`` looks like depends on the seed and ``e`` alone.

    ``groups`` and ``lengths`` (the longer text's tokens) have one entry per pair.
    """

    def __init__(self, groups: Sequence[str], lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        members: defaultdict[str, list[int]] = defaultdict(list)
        for index, group in enumerate(groups):
            members[group].append(index)
        self._groups = list(members.values())
        self._plan = plan_batches(
            (len(part) for group in self._groups for part in split_evenly(group, batch_size)), batch_size
        )

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._plan)

    def __iter__(self) -> Iterator[list[int]]:
        rng = random.Random(f"{self.seed} {self.epoch}")
        chunks: defaultdict[int, list[list[int]]] = defaultdict(list)
        for group in self._groups:
            for part in split_evenly(rng.sample(group, len(group)), self.batch_size):
                chunks[len(part)].append(part)
        pools = {size: iter(self._arranged(chunks[size], rng)) for size in sorted(chunks)}
        batches = [[index for size in sizes for index in next(pools[size])] for sizes in self._plan]
        rng.shuffle(batches)
        return iter(batches)

    def _arranged(self, chunks: list[list[int]], rng: random.Random) -> list[list[int]]:
        """Shuffled, then sorted by length within windows, so that neighbours need little padding."""
        rng.shuffle(chunks)
        window = max(1, SORTED_BATCHES * self.batch_size // len(chunks[0]))
        return [
            chunk
            for start in range(0, len(chunks), window)
            for chunk in sorted(chunks[start : start + window], key=self._length_of)
        ]

    def _length_of(self, chunk: list[int]) -> int:
        return max(self.lengths[index] for index in chunk)


class PairCollator:
    """Lays a batch of pairs out as its different texts, padded on the right, and says which text stands where.

    Takes rows with ``chosen_ids`` and ``rejected_ids`` and, where segments differ, ``chosen_type_ids`` and
    ``rejected_type_ids``. Gives ``input_ids`` and ``attention_mask`` (and ``token_type_ids``) of shape
    (num_texts, longest), and ``rows`` of shape (2 × num_pairs,): the text's row of every chosen, then every rejected.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        row_of: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
        rows = []
        for side in ("chosen", "rejected"):
            for example in examples:
                text = (tuple(example[f"{side}_ids"]), tuple(example.get(f"{side}_type_ids", ())))
                rows.append(row_of.setdefault(text, len(row_of)))
        batch = {
            "input_ids": _padded([ids for ids, _ in row_of], self.pad_id),
            "attention_mask": _padded([(1,) * len(ids) for ids, _ in row_of], 0),
            "rows": torch.tensor(rows),
        }
        if "chosen_type_ids" in examples[0]:
            batch["token_type_ids"] = _padded([type_ids for _, type_ids in row_of], 0)
        return batch


def _padded(lists: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    longest = max(map(len, lists))
    return torch.tensor([[*numbers, *[value] * (longest - len(numbers))] for numbers in lists])
