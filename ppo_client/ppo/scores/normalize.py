"""An affine map of scores, fitted on responses of the starting policy, and anew where another scale of scores comes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ppo_client.ppo.errors import InvalidScores


@dataclass(frozen=True, slots=True)
class ScoreNormalizer:
    """gain · score + bias. Source: Ziegler et al. 2019, section 2.2."""

    gain: float = 1.0
    bias: float = 0.0
    is_provisional: bool = False
    """Fitted by fewer scores than were wanted, so the next step's fit it again"""

    @classmethod
    def fit(cls, scores: Tensor) -> ScoreNormalizer:
        """The map that gives `scores` mean 0 and standard deviation 1."""
        mean, deviation = _mean_deviation(scores)
        if not deviation:
            raise InvalidScores(
                f"all {len(scores)} responses of the starting policy got the score {mean:g}, so scores cannot be "
                "normalised: look at the reward model, or set reward.normalize_samples = 0"
            )
        return cls(gain=1 / deviation, bias=-mean / deviation)

    def fit_again(self, scores: Tensor, num_wanted: int) -> ScoreNormalizer:
        """As `fit`, by scores (N,) of another scale, N > 0. Provisional where they are fewer than `num_wanted`.

        Of scores that are all the same only the mean can be told: the gain stays, until there are others.
        """
        mean, deviation = _mean_deviation(scores)
        if not deviation:
            return ScoreNormalizer(self.gain, -self.gain * mean, is_provisional=True)
        return ScoreNormalizer(1 / deviation, -mean / deviation, is_provisional=len(scores) < num_wanted)

    def __call__(self, scores: Tensor) -> Tensor:
        return self.gain * scores + self.bias

    def __str__(self) -> str:
        return f"{self.gain:.4g} · score {self.bias:+.4g}"


@dataclass(frozen=True, slots=True)
class NormalizerFitted:
    """Scores are normalised otherwise from a step on."""

    normalizer: ScoreNormalizer

    def to_event(self) -> dict[str, Any]:
        """For metrics.jsonl."""
        return {"kind": "normalizer_fitted", "text": str(self), **asdict(self.normalizer)}

    def __str__(self) -> str:
        return f"scores are normalised anew: {self.normalizer}"


def _mean_deviation(scores: Tensor) -> tuple[float, float]:
    """0 for a deviation that is none but for rounding."""
    mean, deviation = float(scores.double().mean()), float(scores.double().std()) if len(scores) > 1 else 0.0
    return mean, deviation if deviation > 1e-8 * max(1.0, abs(mean)) else 0.0
