"""Padding on the sides where it belongs, and selections without columns that nobody needs."""

from __future__ import annotations

import torch

from ppo_client.ppo.models.sequences import Prompts, Sequences, concatenate, last_token


def make(prompts: list[list[int]], responses: list[list[int]], width: int, pad_id: int = 0) -> Sequences:
    ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in responses])
    mask = torch.arange(width) < torch.tensor([len(row) for row in responses]).unsqueeze(1)
    return Sequences(Prompts.collate(prompts, pad_id), ids, mask)


def test_prompts_are_padded_on_the_left_even_if_they_hold_the_pad_id() -> None:
    prompts = Prompts.collate([[1, 0], [0, 2, 3]], pad_id=0)
    assert prompts.ids.tolist() == [[0, 1, 0], [0, 2, 3]]
    assert prompts.mask.tolist() == [[False, True, True], [True, True, True]]


def test_a_selection_is_trimmed_on_both_sides() -> None:
    sequences = make([[1], [2, 3, 4], [5, 6]], [[7], [8, 9, 10], [11, 12]], width=5)
    some = sequences.select(torch.tensor([2, 0]))
    assert some.prompts.ids.tolist() == [[5, 6], [0, 1]]
    assert some.response_ids.tolist() == [[11, 12], [7, 0]]
    assert some.response_mask.tolist() == [[True, True], [True, False]]
    assert last_token(some.response_mask).tolist() == [1, 0]


def test_concatenation_pads_to_the_widest() -> None:
    both = concatenate([make([[1]], [[2, 3]], width=2), make([[4, 5]], [[6]], width=4)], pad_id=9)
    assert both.prompts.ids.tolist() == [[9, 1], [4, 5]]
    assert both.prompts.mask.tolist() == [[False, True], [True, True]]
    assert both.response_ids.tolist() == [[2, 3, 9, 9], [6, 0, 0, 0]]
    assert both.response_mask.tolist() == [[True, True, False, False], [True, False, False, False]]
