"""Random numbers are functions of the seed and their purpose, not of what was drawn before."""

from __future__ import annotations

import pytest
import torch

from ppo_client.ppo.seeds import Purpose, minibatch_order, prompt_rows, uniforms


def test_rows_have_their_own_numbers_whoever_draws_them() -> None:
    together = uniforms(1, Purpose.SAMPLING, 5, range(4), 6)
    assert together.dtype == torch.float64
    assert torch.equal(uniforms(1, Purpose.SAMPLING, 5, [2, 3], 6), together[2:])
    assert len(together.unique()) == 24
    for other in ((2, Purpose.SAMPLING, 5), (1, Purpose.NORMALIZATION, 5), (1, Purpose.SAMPLING, 6)):
        assert not torch.equal(uniforms(*other, range(4), 6), together)


@pytest.mark.parametrize(("num_prompts", "batch_size"), [(10, 4), (10, 10), (3, 8), (7, 1)])
def test_every_epoch_uses_each_prompt_once(num_prompts: int, batch_size: int) -> None:
    num_epochs = batch_size * 3
    num_steps = num_epochs * num_prompts // batch_size
    rows = [row for step in range(1, num_steps + 1) for row in prompt_rows(0, step, batch_size, num_prompts)]
    epochs = [rows[i : i + num_prompts] for i in range(0, len(rows), num_prompts)]
    assert len(epochs) == num_epochs
    assert all(sorted(epoch) == list(range(num_prompts)) for epoch in epochs)
    if num_prompts > 5:
        assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_step_needs_no_history() -> None:
    assert prompt_rows(3, 17, 4, 9) == prompt_rows(3, 17, 4, 9)
    assert prompt_rows(3, 17, 4, 900) != prompt_rows(4, 17, 4, 900)


def test_minibatches_are_shuffled_afresh() -> None:
    orders = [minibatch_order(0, step, epoch, 16) for step in (1, 2) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(16)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] == minibatch_order(0, 1, 0, 16)
