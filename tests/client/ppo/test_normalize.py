"""Gain and bias give mean 0 and standard deviation 1, also after a change of scale; scores that are all the same."""

from __future__ import annotations

import pytest
import torch

from ppo_client.ppo.errors import InvalidScores
from ppo_client.ppo.scores.normalize import ScoreNormalizer


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


def test_scores_of_another_scale_get_a_map_of_their_own() -> None:
    scores = torch.randn(64, generator=torch.Generator().manual_seed(0)) * 50 + 130
    before = ScoreNormalizer(3.0, -2.0)
    assert before.fit_again(scores, 64) == ScoreNormalizer.fit(scores)
    few = before.fit_again(scores[:5], 64)
    assert few.is_provisional
    assert float(few(scores[:5]).std()) == pytest.approx(1.0, abs=1e-4)
    assert str(ScoreNormalizer(2.0, -3.5)) == "2 · score -3.5"


@pytest.mark.parametrize("scores", [[130.0], [130.0] * 8], ids=["one", "the same"])
def test_scores_that_tell_no_spread_are_moved_to_zero_until_others_do(scores: list[float]) -> None:
    fitted = ScoreNormalizer(3.0, -2.0).fit_again(torch.tensor(scores), 8)
    assert (fitted.gain, fitted.is_provisional) == (3.0, True)
    assert fitted(torch.tensor(scores)).tolist() == [0.0] * len(scores)
