"""Gain and bias give mean 0 and standard deviation 1, and refuse scores that are all the same."""

from __future__ import annotations

import pytest
import torch

from ppo_client.ppo.errors import InvalidScores
from ppo_client.ppo.normalize import ScoreNormalizer


def test_the_fitted_scores_are_standardised_and_others_mapped_alike() -> None:
    scores = torch.randn(500, generator=torch.Generator().manual_seed(0)) * 7 + 40
    normalizer = ScoreNormalizer.fit(scores)
    assert float(normalizer(scores).mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(normalizer(scores).std()) == pytest.approx(1.0, abs=1e-4)
    one, two = normalizer(torch.tensor([40.0, 47.0])).tolist()
    assert two - one == pytest.approx(7 * normalizer.gain, rel=1e-4)


def test_the_default_changes_nothing() -> None:
    scores = torch.randn(5)
    assert torch.equal(ScoreNormalizer()(scores), scores)


@pytest.mark.parametrize("value", [0.0, 3.5, 1e6])
def test_equal_scores_cannot_be_normalised(value: float) -> None:
    with pytest.raises(InvalidScores, match="normalize_samples = 0"):
        ScoreNormalizer.fit(torch.full((32,), value))
