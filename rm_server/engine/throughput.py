"""How many tokens one worker computes a second, as a decaying mean over its last batches."""

from __future__ import annotations

KEEP = 0.9
"""What a new batch leaves of the weight of the older ones: the last ten or so decide."""

SHORTEST_S = 1e-6


class Throughput:
    """Tokens per second of forward pass; starts with a guess that the first batches replace."""

    def __init__(self, tokens_per_s: float) -> None:
        self._seconds = SHORTEST_S
        self._tokens = tokens_per_s * self._seconds

    def add(self, num_tokens: int, seconds: float) -> None:
        """A batch was computed."""
        self._tokens = KEEP * self._tokens + num_tokens
        self._seconds = KEEP * self._seconds + max(seconds, SHORTEST_S)

    @property
    def tokens_per_s(self) -> float:
        """The mean, weighted by time; above 0."""
        return max(1.0, self._tokens / self._seconds)
