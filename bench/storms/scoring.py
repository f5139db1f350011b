"""Callers that score without pause through RewardClient and note what happens."""

from __future__ import annotations

import itertools
import threading

from bench.storms.server_process import seconds_until
from ppo_client import RewardClient


class Scoring:
    """One thread for each way to name a version of model ``m``, for the time of a block."""

    WAYS = ("m", "m@stable", "m@1", "new runs")

    def __init__(self, target: str) -> None:
        self._client = RewardClient(target, timeout_s=60.0)
        self._stop = threading.Event()
        self.failures: list[str] = []
        self.num_answers = dict.fromkeys(self.WAYS, 0)
        self.versions: dict[str, set[int]] = {way: set() for way in self.WAYS}
        self._threads = [threading.Thread(target=self._score, args=(way,)) for way in self.WAYS]

    def __enter__(self) -> Scoring:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._client.close()

    def wait_for_more(self, ways: tuple[str, ...] = WAYS, number: int = 20) -> None:
        """Until each way was answered so many times more; raises TimeoutError after a minute."""
        wanted = {way: self.num_answers[way] + number for way in ways}
        seconds_until(lambda: all(self.num_answers[way] >= wanted[way] for way in ways), 60.0)

    def _score(self, way: str) -> None:
        for number in itertools.count():
            if self._stop.is_set():
                return
            model, run = (way, "steady") if way != "new runs" else ("m", f"run-{number}")
            try:
                scores = self._client.score(model, prompts=["p"] * 2, completions=["a b", "c"], run=run)
                if len(scores.values) != 2:
                    raise RuntimeError(f"2 items have {len(scores.values)} scores")
                self.versions[way].add(scores.version)
                self.num_answers[way] += 1
            except Exception as error:
                self.failures.append(f"{way}: {type(error).__name__}: {error}")
            self._stop.wait(0.01)
