"""How many tokens one worker computes a second, as a decaying mean over its last batches."""

from __future__ import annotations

from collections.abc import Mapping

from rm_server.registry.records import VersionKey

GUESSED_TOKENS_PER_S = 10_000.0
"""Until something has been computed."""

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


class Throughputs:
    """What one worker computes a second, of all versions together and of each."""

    def __init__(self) -> None:
        self._of_all = Throughput(GUESSED_TOKENS_PER_S)
        self._of: dict[VersionKey, Throughput] = {}

    @property
    def tokens_per_s(self) -> float:
        """Of all versions together."""
        return self._of_all.tokens_per_s

    def tokens_per_s_of(self, key: VersionKey) -> float:
        """Of a version; of all together until it has computed something."""
        return self._of.get(key, self._of_all).tokens_per_s

    def add(self, num_tokens: Mapping[VersionKey, int], seconds: float, *, is_for_all: bool = True) -> None:
        """A batch was computed, of so many tokens of each version. ``is_for_all`` False: it is unlike most others."""
        total = sum(num_tokens.values())
        if is_for_all:
            self._of_all.add(total, seconds)
        for key, own in num_tokens.items():
            self._of.setdefault(key, Throughput(GUESSED_TOKENS_PER_S)).add(own, seconds * own / total)

    def forget(self, key: VersionKey) -> None:
        """The version is loaded no longer."""
        self._of.pop(key, None)
