"""An affine map of scores, fitted once on responses of the starting policy and then frozen."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ppo_client.ppo.errors import InvalidScores


@dataclass(frozen=True, slots=True)
class ScoreNormalizer:
    """gain · score + bias. Source: Ziegler et al. 2019, section 2.2."""

    gain: float = 1.0
    bias: float = 0.0

    @classmethod
    def fit(cls, scores: Tensor) -> ScoreNormalizer:
        """The map that gives `scores` mean 0 and standard deviation 1."""
        mean, deviation = float(scores.double().mean()), float(scores.double().std())
        if not deviation > 1e-8 * max(1.0, abs(mean)):
            raise InvalidScores(
                f"all {len(scores)} responses of the starting policy got the score {mean:g}, so scores cannot be "
                "normalised: look at the reward model, or set reward.normalize_samples = 0"
            )
        return cls(gain=1 / deviation, bias=-mean / deviation)

    def __call__(self, scores: Tensor) -> Tensor:
        return self.gain * scores + self.bias
