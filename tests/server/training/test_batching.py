"""Batches of pairs: nothing lost, prompts together, the same for the same seed and epoch, texts computed once."""

from __future__ import annotations

from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rm_server.training.batching import PairBatchSampler, PairCollator, plan_batches, split_evenly


def test_plans_fill_batches_with_the_largest_that_fits() -> None:
    assert plan_batches([3, 5, 2, 8], 8) == [(8,), (5, 3), (2,)]
    assert plan_batches([1] * 10, 4) == [(1,) * 4, (1,) * 4, (1,) * 2]
    assert plan_batches([], 4) == []


@given(st.lists(st.integers(1, 9), max_size=40))
@settings(max_examples=60)
def test_plans_lose_nothing_and_never_overfill(sizes: list[int]) -> None:
    plan = plan_batches(sizes, 9)
    assert Counter(size for batch in plan for size in batch) == Counter(sizes)
    assert all(0 < sum(batch) <= 9 for batch in plan)


def test_parts_are_few_and_even() -> None:
    assert [len(part) for part in split_evenly(range(33), 16)] == [11, 11, 11]
    assert [len(part) for part in split_evenly(range(16), 16)] == [16]


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=80), st.integers(1, 12), st.integers(0, 3))
@settings(max_examples=60)
def test_every_epoch_has_every_pair_once_in_equally_many_batches(groups: list[str], size: int, epoch: int) -> None:
    sampler = PairBatchSampler(groups, [len(group) for group in groups], size, seed=0)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert sorted(index for batch in batches for index in batch) == list(range(len(groups)))
    assert len(batches) == len(sampler)
    assert all(len(batch) <= size for batch in batches)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    groups = [f"g{i // 3}" for i in range(60)]

    def batches(seed: int, epoch: int) -> list[list[int]]:
        sampler = PairBatchSampler(groups, [1] * 60, 8, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert batches(1, 2) == batches(1, 2)
    assert batches(1, 2) != batches(1, 3)
    assert batches(1, 2) != batches(2, 2)


def test_pairs_of_a_prompt_share_a_batch() -> None:
    groups = [f"g{i % 10}" for i in range(80)]
    for batch in PairBatchSampler(groups, [1] * 80, 16, seed=0):
        assert sorted(Counter(groups[index] for index in batch).values()) == [8, 8]


def test_single_pairs_are_batched_by_length() -> None:
    lengths = [(i * 37) % 100 for i in range(100)]
    spreads = [
        max(lengths[i] for i in batch) - min(lengths[i] for i in batch)
        for batch in PairBatchSampler([str(i) for i in range(100)], lengths, 10, seed=0)
    ]
    assert max(spreads) <= 10


def test_a_text_stands_once_in_its_batch_whatever_pairs_it_is_in() -> None:
    batch = PairCollator(pad_id=9)(
        [
            {"chosen_ids": [1, 2, 3], "rejected_ids": [4]},
            {"chosen_ids": [4], "rejected_ids": [5, 6]},
            {"chosen_ids": [1, 2, 3], "rejected_ids": [5, 6]},
        ]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9], [5, 6, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert batch["rows"].tolist() == [0, 1, 0, 1, 2, 2]
    assert "token_type_ids" not in batch


def test_the_same_ids_in_other_segments_are_another_text() -> None:
    batch = PairCollator(pad_id=0)(
        [{"chosen_ids": [1, 2], "rejected_ids": [1, 2], "chosen_type_ids": [0, 1], "rejected_type_ids": [0, 0]}]
    )
    assert torch.equal(batch["token_type_ids"], torch.tensor([[0, 1], [0, 0]]))
    assert batch["rows"].tolist() == [0, 1]
