"""Parts change nothing but memory: each row's numbers come back to its place."""

from __future__ import annotations

import pytest
import torch
from tiny_models import EOS_ID, PAD_ID, VOCAB_SIZE
from tiny_policies import make_language_model

from ppo_client.ppo.models import reading
from ppo_client.ppo.models.causal import CausalPolicy
from ppo_client.ppo.models.distribution import SamplingRule
from ppo_client.ppo.models.reading import read_in_parts
from ppo_client.ppo.models.sequences import Prompts, Sequences

WIDTH = 6
LENGTHS = (2, 6, 1, 4, 6, 3, 1)


@pytest.fixture(scope="module")
def policy() -> CausalPolicy:
    return CausalPolicy(make_language_model("llama"), SamplingRule(0.7, (EOS_ID,), 1), PAD_ID).eval()


def make_sequences() -> Sequences:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, VOCAB_SIZE, (2 + row,), generator=generator).tolist() for row in range(len(LENGTHS))]
    ids = torch.randint(5, VOCAB_SIZE, (len(LENGTHS), WIDTH), generator=generator)
    mask = torch.arange(WIDTH) < torch.tensor(LENGTHS).unsqueeze(1)
    return Sequences(Prompts.collate(rows, PAD_ID), torch.where(mask, ids, PAD_ID), mask)


@pytest.mark.parametrize("rows_at_a_time", [1, 3, 7])
@torch.no_grad()
def test_parts_are_the_whole(policy: CausalPolicy, rows_at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_LOGITS_ON_CPU", rows_at_a_time * WIDTH * VOCAB_SIZE)
    sequences = make_sequences()
    shapes: list[tuple[int, ...]] = []

    def read(part: Sequences) -> tuple[torch.Tensor, torch.Tensor]:
        shapes.append(tuple(part.response_ids.shape))
        found = policy(part)
        return found.log_probs, found.hidden.sum(-1)

    log_probs, sums = read_in_parts(policy, sequences, read)
    whole = policy(sequences)
    mask = sequences.response_mask
    assert torch.allclose(log_probs, torch.where(mask, whole.log_probs, 0.0), atol=1e-5)
    assert torch.allclose(sums, torch.where(mask, whole.hidden.sum(-1), 0.0), atol=1e-4)
    assert max(rows for rows, _ in shapes) == rows_at_a_time
    assert sum(rows for rows, _ in shapes) == len(LENGTHS)
    widths = [width for _, width in shapes]
    assert widths == sorted(widths), "rows of similar length go together"
    if rows_at_a_time == 1:
        assert widths == sorted(LENGTHS)


def test_a_row_that_is_too_large_is_read_by_itself(policy: CausalPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_LOGITS_ON_CPU", 1)
    with torch.no_grad():
        (found,) = read_in_parts(policy, make_sequences(), lambda part: (policy(part).log_probs,))
    assert torch.equal(found != 0, make_sequences().response_mask)
