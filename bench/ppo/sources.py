"""What stands where the reward service is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from bench.ppo import toy
from ppo_client.client.scores import Scores

CALL_S, TEXT_S = 0.020, 0.010


class EvenTokens:
    """The share of even tokens, at once."""

    def __init__(self) -> None:
        self._values: list[float] = []

    def take_mean(self) -> float:
        """Of the scores given since this was asked last."""
        mean = sum(self._values) / len(self._values)
        self._values.clear()
        return mean

    def submit(self, model: str, *, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> Future[Scores]:
        future: Future[Scores] = Future()
        future.set_result(self.scores(completions))
        return future

    def scores(self, completions: Sequence[Any]) -> Scores:
        """The answer to a call."""
        values = [toy.even_share(ids) for ids in completions]
        self._values += values
        rest: dict[str, Any] = {"truncated": [False] * len(values), "num_tokens": [1] * len(values)}
        return Scores(values=values, model="even", version=1, digest="0" * 64, **rest)


class SlowEvenTokens(EvenTokens):
    """A service that takes 20 ms a call and 10 ms a text, one call after the other."""

    def __init__(self, *, is_blocking: bool) -> None:
        super().__init__()
        self._is_blocking = is_blocking
        self._service = ThreadPoolExecutor(max_workers=1)
        self.blocked_s = 0.0

    def submit(self, model: str, *, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> Future[Scores]:
        future = self._service.submit(self._score, list(completions))
        if self._is_blocking:
            started = time.perf_counter()
            future.result()
            self.blocked_s += time.perf_counter() - started
        return future

    def _score(self, completions: list[Any]) -> Scores:
        time.sleep(CALL_S + TEXT_S * len(completions))
        return self.scores(completions)
